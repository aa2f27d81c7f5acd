//! Names by DNS: the system's name servers, and nothing else of its configuration.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use postrider_common::net::{ResolveError, Resolver};
use tokio::time::{Instant, timeout};

/// How long a resolution may take in all.
const BUDGET: Duration = Duration::from_secs(3);

/// How long one question to one name server may take: two fit the budget, so that one lost packet is no failure.
const QUESTION_TIMEOUT: Duration = Duration::from_millis(1400);
const QUESTIONS: usize = 2;

/// How many answers are kept. One is some hundred bytes.
const CACHED_ANSWERS: u64 = 4096;

/// The longest that an answer is kept, whatever its own time to live: an address that is no longer the receiver's stops being used.
const MAX_KEPT: Duration = Duration::from_secs(60);

/// The longest that "no such name" is kept: a receiver that comes back should be found.
const MAX_KEPT_MISSING: Duration = Duration::from_secs(10);

/// While name servers answered others this lately, a name that gets no answer is the name's own fault, not theirs.
const ALIVE: Duration = Duration::from_secs(10);

/// Resolves by the name servers that the system is configured with. Names are taken as complete: no search domains, no hosts file.
pub struct SystemResolver {
    resolver: TokioResolver,
    answered: Mutex<Option<Instant>>,
}

impl SystemResolver {
    /// Reads the system's name servers.
    ///
    /// # Errors
    /// [`ResolveError::Failed`] if there are none to be read.
    pub fn new() -> Result<Self, ResolveError> {
        let failed = |error: NetError| ResolveError::Failed(error.to_string());
        let (system, _) = hickory_resolver::system_conf::read_system_conf().map_err(failed)?;
        Self::with_name_servers(ResolverConfig::from_name_servers(system.name_servers().to_vec()))
    }

    fn with_name_servers(config: ResolverConfig) -> Result<Self, ResolveError> {
        let mut options = ResolverOpts::default();
        options.timeout = QUESTION_TIMEOUT;
        options.attempts = QUESTIONS;
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.use_hosts_file = ResolveHosts::Never;
        options.cache_size = CACHED_ANSWERS;
        options.positive_max_ttl = Some(MAX_KEPT);
        options.negative_max_ttl = Some(MAX_KEPT_MISSING);
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
            .with_options(options)
            .build()
            .map_err(|error| ResolveError::Failed(error.to_string()))?;
        Ok(Self {
            resolver,
            answered: Mutex::new(None),
        })
    }

    /// Notes that a name server answered.
    fn answered(&self) {
        *self.answered.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    fn is_alive(&self) -> bool {
        let answered = *self.answered.lock().unwrap_or_else(PoisonError::into_inner);
        answered.is_some_and(|at| at.elapsed() < ALIVE)
    }
}

#[async_trait]
impl Resolver for SystemResolver {
    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, ResolveError> {
        // The final dot makes it complete.
        let question = self.resolver.lookup_ip(format!("{host}."));
        let error = match timeout(BUDGET, question).await {
            Ok(Ok(found)) => {
                self.answered();
                let addresses: Vec<IpAddr> = found.iter().collect();
                return if addresses.is_empty() {
                    Err(ResolveError::NotFound)
                } else {
                    Ok(addresses)
                };
            }
            Ok(Err(error)) => error,
            Err(_) => NetError::Timeout,
        };
        match error {
            // Also where the name's own servers are broken: ours answered.
            NetError::Dns(DnsError::NoRecordsFound(_) | DnsError::ResponseCode(ResponseCode::ServFail)) => {
                self.answered();
                Err(ResolveError::NotFound)
            }
            NetError::Timeout if self.is_alive() => Err(ResolveError::NotFound),
            other => Err(ResolveError::Failed(other.to_string())),
        }
    }
}

#[cfg(test)]
mod tests;
