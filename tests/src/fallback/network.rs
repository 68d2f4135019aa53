//! What the network between the relay and others does to packets, by nft in the scene's own namespace.

use std::net::Ipv4Addr;

use anyhow::Result;

use crate::cluster::Machine;

/// Lets packets vanish that go to an address.
pub(super) async fn drop_packets_to(machine: &Machine, address: Ipv4Addr) -> Result<()> {
    rule(machine, &format!("ip daddr {address} drop")).await
}

/// Refuses what goes to an address, as a machine does that runs no such program.
pub(super) async fn refuse(machine: &Machine, address: Ipv4Addr, port: u16) -> Result<()> {
    rule(machine, &format!("ip daddr {address} tcp dport {port} reject with tcp reset")).await
}

/// Takes all of it back.
pub(super) async fn heal(machine: &Machine) -> Result<()> {
    machine.sh("nft add table ip scene; nft delete table ip scene").await.map(drop)
}

async fn rule(machine: &Machine, rule: &str) -> Result<()> {
    let script = format!(
        "nft add table ip scene
         nft add chain ip scene output '{{ type filter hook output priority 0; }}'
         nft add rule ip scene output {rule}"
    );
    machine.sh(&script).await.map(drop)
}
