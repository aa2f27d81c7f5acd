//! Compiles the protobuf files in pure Rust (protox) and generates messages, clients and servers.

use std::path::{Path, PathBuf};

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let files = [
        "account_service",
        "cluster_service",
        "delivery_service",
        "event_type_service",
        "publish_service",
        "webhook_service",
    ]
    .map(|name| root.join(format!("postrider/v1/{name}.proto")));
    let stored = root.join("postrider/stored/v1/stored.proto");
    for file in std::fs::read_dir(root.join("postrider/v1"))? {
        println!("cargo::rerun-if-changed={}", file?.path().display());
    }
    println!("cargo::rerun-if-changed={}", stored.display());

    let api = protox::compile(&files, [&root])?;
    std::fs::write(out.join("api_descriptor.bin"), api.encode_to_vec())?;
    generate(&out, api)?;
    generate(&out, protox::compile([&stored], [&root])?)
}

fn generate(out: &Path, descriptors: prost_types::FileDescriptorSet) -> Result<(), Box<dyn std::error::Error>> {
    tonic_prost_build::configure()
        .out_dir(out)
        .codec_path("crate::codec::StrictCodec")
        .bytes(".")
        .btree_map(".")
        .skip_debug([
            "postrider.v1.BasicAuth",
            "postrider.v1.BearerAuth",
            "postrider.v1.ApiKeyAuth",
            "postrider.v1.OAuth2Auth",
            "postrider.v1.MtlsAuth",
            "postrider.v1.SignatureAuth",
            "postrider.v1.RotateSigningSecretRequest",
        ])
        .compile_fds(descriptors)?;
    Ok(())
}
