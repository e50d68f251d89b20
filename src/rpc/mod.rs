//! What the daemon serves to peers and operators: peer gRPC, admin HTTP.
