//! Keys of Dragonfly's `dfdaemon.yaml` that this daemon knows and does nothing with, so that an existing file works.

/// Accepted with one warning line: what they ask for is not there, or is always done.
pub(super) const IGNORED: &[&str] = &[
    "backend",
    "console",
    "download.backToSourceConcurrentPieceCount",
    "download.collectedPieceTimeout",
    "download.parentSelector",
    "download.protocol",
    "download.rateLimit",
    "download.server.requestBufferSize",
    "download.server.requestRateLimit",
    "dynconfig",
    "gc.policy.pageCacheIdleTimeout",
    "gc.policy.persistentCacheTaskTTL",
    "gc.policy.persistentTaskTTL",
    "host.schedulerClusterID",
    "manager",
    "metrics",
    "network",
    "persistentCacheTask",
    "proxy.prefetch",
    "proxy.prefetchBandwidthLimit",
    "proxy.prefetchRateLimit",
    "proxy.readBufferSize",
    "proxy.registryMirror.enableTaskIDBasedBlobDigest",
    "proxy.rules.schedulingPolicy",
    "proxy.server.requestRateLimit",
    "scheduler.enableBackToSource",
    "scheduler.maxScheduleCount",
    "scheduler.scheduleTimeout",
    "seedPeer.clusterID",
    "seedPeer.keepaliveInterval",
    "seedPeer.type",
    "server",
    "stats",
    "storage.cacheCapacity",
    "storage.readBufferSize",
    "storage.server.quicPort",
    "storage.server.tcpFastopen",
    "storage.writebackMode",
    "storage.writeBufferSize",
    "storage.writePieceTimeout",
    "tracing",
    "upload.rateLimit",
    "upload.server.requestBufferSize",
    "upload.server.requestRateLimit",
];

/// Refused with this reason: who sets them relies on a protection that this version does not give.
pub(super) const UNSUPPORTED: &[&str] = &[
    "scheduler.caCert",
    "scheduler.cert",
    "scheduler.key",
    "security.autoIssueCert",
    "security.caKey",
    "security.certSpec",
    "security.enable",
    "security.tlsPolicy",
    "security.tlsVerify",
    "upload.client.caCert",
    "upload.client.cert",
    "upload.client.key",
    "upload.server.caCert",
    "upload.server.cert",
    "upload.server.key",
];

/// Every key that the file reader must let pass.
pub(super) fn tolerated() -> Vec<&'static str> {
    IGNORED.iter().chain(UNSUPPORTED).copied().collect()
}
