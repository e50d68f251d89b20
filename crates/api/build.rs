//! Compiles our protocol buffers; no `protoc` is needed.

use std::error::Error;

const PROTOS: [&str; 5] =
    ["common.proto", "errordetails.proto", "dfdaemon.proto", "scheduler.proto", "damselfly.proto"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = protox::compile(PROTOS, ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        .generate_default_stubs(true)
        .emit_rerun_if_changed(false)
        .compile_fds(files)?;
    Ok(())
}
