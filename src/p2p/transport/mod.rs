//! Piece data between hosts: server and client of the Vortex TCP framing.
