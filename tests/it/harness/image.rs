//! A container image, made by hand: one layer with one file.

use bytes::Bytes;
use serde_json::json;

use super::{Ask, Origin, Page, random, sha256_hex};

/// The media type of an image's manifest.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image with all that a registry has of it.
pub(crate) struct Image {
    pub(crate) layer: Bytes,
    pub(crate) config: Bytes,
    pub(crate) manifest: Bytes,
}

/// `sha256:…` of these bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", sha256_hex(bytes))
}

impl Image {
    /// An image whose layer has a file of `size` random bytes.
    pub(crate) fn new(size: usize, seed: u64) -> Self {
        let layer = tar("payload.bin", &random(size, seed));
        let config = json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let config = Bytes::from(config.to_string());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "size": config.len(),
                "digest": digest(&config),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.v1.tar",
                "size": layer.len(),
                "digest": digest(&layer),
            }],
        });
        Self { layer, config, manifest: manifest.to_string().into() }
    }

    /// The path of the layer in a registry.
    pub(crate) fn layer_path(&self, repository: &str) -> String {
        format!("/v2/{repository}/blobs/{}", digest(&self.layer))
    }

    /// Puts the image on an origin as a registry has it.
    pub(crate) fn publish(&self, origin: &Origin, repository: &str, tag: &str) {
        origin.put("/v2/", Page::plain("{}").header("Docker-Distribution-Api-Version", "registry/2.0"));
        for blob in [&self.layer, &self.config] {
            let page = Page::file(blob.clone()).header("Docker-Content-Digest", &digest(blob));
            origin.put(&format!("/v2/{repository}/blobs/{}", digest(blob)), page);
        }
        for reference in [tag, &digest(&self.manifest)] {
            let page = Page::plain(self.manifest.clone())
                .header("Content-Type", MANIFEST)
                .header("Docker-Content-Digest", &digest(&self.manifest));
            origin.put(&format!("/v2/{repository}/manifests/{reference}"), page);
        }
    }

    /// Pushes the image to a real registry at `http://HOST:PORT`.
    pub(crate) fn push(&self, registry: &str, repository: &str, tag: &str) {
        for blob in [&self.layer, &self.config] {
            let begun = Ask::new("POST", &format!("{registry}/v2/{repository}/blobs/uploads/")).send();
            assert_eq!(begun.status, 202, "{begun:?}");
            let place = begun.line("location");
            let place = if place.starts_with('/') { format!("{registry}{place}") } else { place.to_string() };
            let sign = if place.contains('?') { '&' } else { '?' };
            let done = Ask::new("PUT", &format!("{place}{sign}digest={}", digest(blob))).body(blob).send();
            assert_eq!(done.status, 201, "{done:?}");
        }
        let url = format!("{registry}/v2/{repository}/manifests/{tag}");
        let done = Ask::new("PUT", &url).header("Content-Type", MANIFEST).body(&self.manifest).send();
        assert_eq!(done.status, 201, "{done:?}");
    }
}

/// A tar archive (ustar) of one file.
fn tar(name: &str, content: &[u8]) -> Bytes {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644\0");
    put(108, "0000000\0");
    put(116, "0000000\0");
    put(124, &format!("{:011o}\0", content.len()));
    put(136, "00000000000\0");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(content);
    let padded = archive.len().next_multiple_of(512) + 1024;
    archive.resize(padded, 0);
    archive.into()
}
