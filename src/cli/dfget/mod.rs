//! `dfget`: one URL into one file, through the daemon where there is one.
//!
//! # The way
//! [`args`] makes an order of the arguments; [`via`] gets the answer, from the daemon or directly; its bytes go into
//! the [`target`], which becomes the file once all of them are there and agree with what was announced.
//!
//! **A file of the asked name is whole.** **Going directly is never silent.**

mod args;
mod progress;
mod target;
mod via;

use std::time::Duration;

use damselfly_runtime::Signals;
use http::header;
use http_body_util::BodyExt as _;
use tokio::time::timeout;

use self::args::Order;
use self::progress::Progress;
use self::target::Target;
use self::via::{Fault, Via};
use crate::net::{ClientConfig, Egress, HttpClient};

pub use self::args::Args;

/// How long the bytes of an answer may pause.
const SILENCE: Duration = Duration::from_secs(120);

/// Does what the arguments say. Leaves no unfinished file behind, also when it is interrupted.
///
/// # Errors
/// A [`damselfly_runtime::UsageError`] where the arguments are wrong; anything else is a download that failed.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let order = Order::of(&args)?;
    let signals = Signals::catch()?;
    tokio::select! {
        result = download(&args, &order) => result,
        name = signals.first() => Err(anyhow::anyhow!("interrupted by {name}")),
    }
}

async fn download(args: &Args, order: &Order) -> anyhow::Result<()> {
    let progress = Progress::new(args.quiet, args.verbose);
    let mut target = Target::open(&args.output, order.digest.is_some()).await?;
    let through = match Via::daemon(&order.sockets).await {
        Ok(daemon) => attempt(order, &daemon, &mut target, &progress).await,
        Err(why) => Err(Fault::Way(why)),
    };
    match through {
        Ok(()) => {}
        Err(Fault::Final(error)) => return Err(error),
        Err(Fault::Way(why)) if args.no_fallback => return Err(anyhow::anyhow!(why)),
        Err(Fault::Way(why)) => {
            if !target.restart().await? {
                return Err(anyhow::anyhow!(
                    "{why}; {} bytes have gone out and cannot be taken back",
                    target.written()
                ));
            }
            progress.say(&format!("{why}; downloading directly"));
            let direct = Via::Direct(HttpClient::new(direct_client()?)?);
            attempt(order, &direct, &mut target, &progress).await.map_err(|fault| match fault {
                Fault::Way(why) => anyhow::anyhow!(why),
                Fault::Final(error) => error,
            })?;
        }
    }
    let bytes = target.written();
    target.keep().await?;
    progress.done(bytes);
    Ok(())
}

/// How origins are asked without a daemon: the way out that the environment names.
fn direct_client() -> anyhow::Result<ClientConfig> {
    let egress = Egress::from_env(|name| std::env::var(name).ok());
    Ok(ClientConfig { egress: egress.map_err(anyhow::Error::msg)?, ..ClientConfig::default() })
}

/// One attempt, one way.
async fn attempt(order: &Order, via: &Via, target: &mut Target, progress: &Progress) -> Result<(), Fault> {
    let response = via.get(order).await?;
    let (head, mut body) = response.into_parts();
    if let Some(task) = head.headers.get("x-dragonfly-task-id").and_then(|value| value.to_str().ok()) {
        progress.detail(|| format!("task {task}"));
    }
    let length = head.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    progress.begin(length);
    loop {
        let frame = match timeout(SILENCE, body.frame()).await {
            Err(_) => return Err(Fault::Way(format!("no byte came for {} s", SILENCE.as_secs()))),
            Ok(None) => break,
            Ok(Some(Err(error))) => return Err(Fault::Way(format!("the transfer broke off: {error}"))),
            Ok(Some(Ok(frame))) => frame,
        };
        if let Ok(bytes) = frame.into_data() {
            target.write(&bytes).await.map_err(|error| Fault::fatal(format_args!("cannot write: {error}")))?;
            progress.at(target.written());
        }
    }
    if let Some(length) = length.filter(|length| *length != target.written()) {
        return Err(Fault::Way(format!("{} bytes came where {length} were announced", target.written())));
    }
    match &order.digest {
        Some(digest) if !target.has(digest) => {
            Err(Fault::Way(format!("the content does not have the digest {digest}")))
        }
        _ => Ok(()),
    }
}
