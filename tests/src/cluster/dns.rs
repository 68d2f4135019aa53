//! A name server that answers A questions from a table: nodes and pods find test registries by name.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use super::netns::NetworkNamespace;

pub(crate) type Table = HashMap<String, Ipv4Addr>;

const HEADER: usize = 12;
const TYPE_A: [u8; 2] = [0, 1];
const NO_SUCH_NAME: u8 = 3;

#[derive(Debug)]
pub(super) struct NameServer {
    table: Arc<Mutex<Table>>,
    _task: JoinSet<()>,
}

impl NameServer {
    pub(super) async fn start(namespace: &NetworkNamespace, address: Ipv4Addr) -> Result<Self> {
        let socket = namespace.bind_udp(SocketAddrV4::new(address, 53)).await?;
        let table = Arc::new(Mutex::new(Table::new()));
        let mut task = JoinSet::new();
        task.spawn(serve(socket, Arc::clone(&table)));
        Ok(Self { table, _task: task })
    }

    /// Makes a name resolve to an address from now on.
    pub(super) fn set(&self, name: &str, address: Ipv4Addr) {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_ascii_lowercase(), address);
    }
}

async fn serve(socket: UdpSocket, table: Arc<Mutex<Table>>) {
    let mut buffer = [0; 1500];
    loop {
        // An error here is a former answer that could not be delivered.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let answer = answer(&buffer[..length], &table.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(answer) = answer {
            let _ = socket.send_to(&answer, peer).await;
        }
    }
}

/// The answer to one query (RFC 1035, section 4.1); none to what is no query.
pub(crate) fn answer(query: &[u8], table: &Table) -> Option<Vec<u8>> {
    let is_response = query.get(2)? & 0x80 != 0;
    let one_question = query.get(4..6)? == [0, 1];
    if is_response || !one_question {
        return None;
    }
    let (name, end) = question_name(query)?;
    let question = query.get(HEADER..end + 4)?;
    let kind = query.get(end..end + 2)?;
    let address = table.get(&name);
    let found = address.filter(|_| kind == TYPE_A);
    let code = if address.is_some() { 0 } else { NO_SUCH_NAME };

    let mut message = query.get(..2)?.to_vec();
    // Response, authoritative, recursion as desired and available, so that no resolver looks further.
    message.extend([0x84 | (query[2] & 0x01), 0x80 | code]);
    message.extend([0, 1, 0, u8::from(found.is_some()), 0, 0, 0, 0]);
    message.extend(question);
    if let Some(address) = found {
        // The question's name, type A, class IN, valid for a second, four bytes.
        message.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 1, 0, 4]);
        message.extend(address.octets());
    }
    Some(message)
}

/// The name asked for, in lower case, and where it ends.
fn question_name(query: &[u8]) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    let mut at = HEADER;
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        match length {
            0 => return Some((labels.join("."), at)),
            1..64 => {
                let label = query.get(at..at + length)?;
                labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
                at += length;
            }
            // A question has nothing before it that it could point to.
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u8) -> Vec<u8> {
        let mut query = vec![7, 9, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(u8::try_from(label.len()).unwrap());
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        query
    }

    fn table() -> Table {
        HashMap::from([("registry-a.test".to_owned(), Ipv4Addr::new(10, 80, 2, 1))])
    }

    #[test]
    fn a_known_name_has_an_address_in_any_case_of_letters() {
        let answer = answer(&query("Registry-A.test", 1), &table()).unwrap();
        assert_eq!(&answer[..4], &[7, 9, 0x85, 0x80]);
        assert_eq!(&answer[answer.len() - 4..], &[10, 80, 2, 1]);
    }

    #[test]
    fn a_known_name_has_no_ipv6_address_but_exists() {
        let answer = answer(&query("registry-a.test", 28), &table()).unwrap();
        assert_eq!((answer[3] & 0x0f, answer[7]), (0, 0));
    }

    #[test]
    fn an_unknown_name_does_not_exist() {
        assert_eq!(answer(&query("docker.io", 1), &table()).unwrap()[3] & 0x0f, NO_SUCH_NAME);
    }

    #[test]
    fn nonsense_gets_no_answer() {
        for length in 0..30 {
            assert_eq!(answer(&vec![0xff; length], &table()), None);
        }
        let whole = query("registry-a.test", 1);
        for length in 0..whole.len() {
            assert_eq!(answer(&whole[..length], &table()), None);
        }
    }
}
