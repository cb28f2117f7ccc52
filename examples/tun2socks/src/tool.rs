//! Options, listeners, and where destinations lead to.

use crate::names::Names;
use crate::proxy::Proxy;
use crate::resolver::Resolvers;
use crate::{dns, tcp, udp};
use anyhow::{Context, bail};
use clap::{Parser, ValueEnum};
use fast_socks5::util::target_addr::TargetAddr;
use ipnet::{IpNet, Ipv4Net};
use parking_lot::Mutex;
use rustix::process::{Resource, getrlimit, setrlimit};
use sosplice::link::tun::Tun;
use sosplice::stack::{FlowOptions, Mapping};
use sosplice::{ConditionalListener, Intercept, Stack, UdpListener, UdpSocket};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;

/// Most clients that wait for the proxy to connect. SYNs of others are not answered, and are sent again.
const DIALLING: usize = 1024;
/// Most flows of datagrams, each with two descriptors.
const FLOWS: usize = 4096;
/// The port of resolvers.
const DOMAIN: u16 = 53;

/// How names are resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Queries are datagrams as others
    Udp,
    /// Queries over UDP go to the resolver over TCP
    Tcp,
    /// Queries are answered with fake addresses, and the proxy gets names
    Fake,
}

/// Sends the TCP connections and UDP datagrams that enter a TUN device through a SOCKS5 proxy.
#[derive(Parser)]
#[command(name = "tun2socks", version, max_term_width = 100)]
struct Arguments {
    /// The device: NAME, or NAME@NAMESPACE for one in a network namespace of `ip netns`
    tun: String,
    /// The SOCKS5 server
    #[arg(long, value_name = "ADDRESS:PORT")]
    proxy: SocketAddr,
    /// The user's name for it
    #[arg(long, requires = "password", value_parser = short)]
    user: Option<String>,
    /// The password for it
    #[arg(long, requires = "user", value_parser = short)]
    password: Option<String>,
    /// How names are resolved
    #[arg(long, value_enum, default_value = "udp")]
    dns: Mode,
    /// Where queries are sent to, by way of the proxy, in place of the resolver that the client asks
    #[arg(long, value_name = "ADDRESS:PORT")]
    resolver: Option<SocketAddr>,
    /// Fake addresses are of this network
    #[arg(long, value_name = "NETWORK", default_value = "198.18.0.0/15")]
    fakes: Ipv4Net,
    /// An address of the stack behind the device, with its prefix length; more than one is possible
    #[arg(long, default_value = "198.18.0.1/15")]
    address: Vec<IpNet>,
    /// How many seconds the proxy may take to answer
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u64,
    /// End connections that were idle for this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    idle: u64,
    /// End flows of datagrams that were idle for this many seconds; after 30 those that were not answered
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    udp_idle: u64,
}

/// RFC 1929: the length is one byte.
fn short(value: &str) -> Result<String, &'static str> {
    match value.len() {
        1..=255 => Ok(value.to_owned()),
        _ => Err("its length must be 1 to 255 bytes"),
    }
}

/// Where a destination leads to.
pub(crate) enum Target {
    Proxied(TargetAddr),
    /// A resolver: this program answers.
    Answered,
    /// A fake address, and no name has it.
    Unknown,
}

/// What all clients share.
pub(crate) struct Tool {
    pub(crate) proxy: Proxy,
    pub(crate) idle: Duration,
    pub(crate) resolvers: Resolvers,
    /// With fake addresses.
    pub(crate) names: Option<Mutex<Names>>,
    mode: Mode,
    resolver: Option<SocketAddr>,
}

impl Tool {
    fn new(arguments: &Arguments) -> Tool {
        let own = arguments.address.iter().map(IpNet::addr).collect();
        let is_fake = arguments.dns == Mode::Fake;
        Tool {
            proxy: Proxy::new(
                arguments.proxy,
                arguments.user.clone().zip(arguments.password.clone()),
                Duration::from_secs(arguments.timeout),
            ),
            idle: Duration::from_secs(arguments.idle),
            resolvers: Resolvers::default(),
            names: is_fake.then(|| Mutex::new(Names::new(arguments.fakes, own))),
            mode: arguments.dns,
            resolver: arguments.resolver,
        }
    }

    pub(crate) fn target(&self, to: SocketAddr) -> Target {
        if to.port() == DOMAIN {
            match (self.mode, self.resolver) {
                (Mode::Fake, _) => return Target::Answered,
                (_, Some(resolver)) => return Target::Proxied(TargetAddr::Ip(resolver)),
                (_, None) => {}
            }
        }
        let mut names = self.names.as_ref().map(Mutex::lock);
        match names.as_mut().filter(|names| names.is_fake(to.ip())) {
            None => Target::Proxied(TargetAddr::Ip(to)),
            Some(names) => match names.name(to.ip()) {
                Some(name) => Target::Proxied(TargetAddr::Domain(name, to.port())),
                None => Target::Unknown,
            },
        }
    }

    /// Serves a flow: of a client to all destinations, which has the port 0, or to one.
    async fn serve(self: Arc<Tool>, flow: UdpSocket) -> anyhow::Result<()> {
        let to = flow.local_addr();
        match (to.port(), self.target(to)) {
            (0, _) => udp::relay(&self, flow, None).await,
            (DOMAIN, _) if self.mode != Mode::Udp => dns::serve(&self, flow).await,
            (_, Target::Proxied(target)) => udp::relay(&self, flow, Some(target)).await,
            (_, Target::Answered | Target::Unknown) => {
                flow.refuse();
                bail!("no name has this fake address")
            }
        }
    }
}

/// Reports the failure of a task.
async fn report(to: SocketAddr, task: impl Future<Output = anyhow::Result<()>>) {
    if let Err(error) = task.await {
        eprintln!("{to}: {error:#}");
    }
}

/// Serves each flow in a task.
async fn accept(tool: Arc<Tool>, listener: UdpListener) {
    while let Ok((flow, client)) = listener.accept_async().await {
        tokio::spawn(report(client, Arc::clone(&tool).serve(flow)));
    }
}

/// Intercepts datagrams: all of a client are one flow, but those to resolvers and to fake addresses.
fn intercept(tool: &Arc<Tool>, stack: &Stack, arguments: &Arguments) -> io::Result<()> {
    let idle = Duration::from_secs(arguments.udp_idle);
    let flows = FlowOptions::default()
        .max_flows(FLOWS)
        .backlog(FLOWS)
        .answered_timeout(idle);
    let of_client = flows.clone().mapping(Mapping::Endpoint);
    let queries = flows.clone().unanswered_timeout(dns::IDLE);
    let mut rules = vec![
        (Intercept::all(), of_client),
        (
            Intercept::all().ports(DOMAIN..=DOMAIN),
            queries.answered_timeout(dns::IDLE),
        ),
    ];
    if tool.names.is_some() {
        rules.push((Intercept::all().addresses(arguments.fakes.into()), flows));
    }
    for (rule, options) in rules {
        let listener = UdpListener::intercept(stack, rule, options)?;
        tokio::spawn(accept(Arc::clone(tool), listener));
    }
    Ok(())
}

/// Serves each connection in a task, until the device is gone.
async fn serve_all(arguments: Arguments, stack: Stack) -> anyhow::Result<()> {
    let tool = Arc::new(Tool::new(&arguments));
    let listener = ConditionalListener::intercept(&stack, Intercept::all(), DIALLING)?;
    intercept(&tool, &stack, &arguments)?;
    println!("what enters {} goes to {}", arguments.tun, arguments.proxy);
    loop {
        let client = listener
            .pending_async()
            .await
            .context("the device is gone")?;
        let to = client.local_addr();
        tokio::spawn(report(to, tcp::serve(Arc::clone(&tool), client)));
    }
}

/// Runs the program.
pub(crate) fn run() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut descriptors = getrlimit(Resource::Nofile);
    descriptors.current = descriptors.maximum;
    setrlimit(Resource::Nofile, descriptors)?;
    let builder = match arguments.tun.split_once('@') {
        Some((name, namespace)) => Tun::builder(name).netns(namespace),
        None => Tun::builder(&arguments.tun),
    };
    let mut stack = Stack::builder(builder.build()?);
    for address in &arguments.address {
        stack = stack.address(*address);
    }
    Runtime::new()?.block_on(serve_all(arguments, stack.build()?))
}
