//! Connections: the proxy connects first, then the client is answered, and both are spliced.

use crate::dns;
use crate::tool::{Target, Tool};
use anyhow::bail;
use sosplice::ConnectionRequest;
use sosplice::kernel::KernelStream;
use sosplice::splice::{self, Options};
use std::sync::Arc;

/// Serves one client. A destination that the proxy does not reach is refused here too.
pub(crate) async fn serve(tool: Arc<Tool>, client: ConnectionRequest) -> anyhow::Result<()> {
    let target = match tool.target(client.local_addr()) {
        Target::Answered => return dns::serve_stream(&tool, client.accept()?).await,
        Target::Unknown => {
            client.refuse();
            bail!("no name has this fake address");
        }
        Target::Proxied(target) => target,
    };
    let server = async {
        let stream = tool.proxy.connect(target).await?;
        anyhow::Ok(KernelStream::from_std(stream.into_std()?)?)
    };
    let server = match server.await {
        Ok(server) => server,
        Err(error) => {
            client.refuse();
            return Err(error);
        }
    };
    let options = Options::default()
        .idle(tool.idle)
        .forward_eof(true)
        .forward_reset(true);
    splice::join(client.accept()?, server, options)?;
    Ok(())
}
