//! The one HTTP client, and dialling.
