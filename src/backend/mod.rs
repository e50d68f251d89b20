//! Back-to-source: how content is fetched from its origin.
