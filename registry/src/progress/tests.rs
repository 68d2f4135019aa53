//! Every order of events that a download and its readers can go through, for a content of few bytes.

use std::collections::HashSet;

use super::*;

const TRUE_SIZE: u64 = 3;

/// Whose bytes are in the file: the digest's, or others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Bytes {
    Right,
    Wrong,
}

/// A reader of the whole content: what it was told and what it got.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Reader {
    Away,
    Waiting,
    Reading { told: Option<u64>, got: u64, of: Bytes },
    Complete { got: u64, of: Bytes },
    Cut,
    Refused,
    Left,
}

/// A download, what is in its file, and two readers. `None`: the download's end was dropped.
#[derive(Clone)]
struct World {
    progress: Option<Progress>,
    total: Option<u64>,
    length: u64,
    bytes: Bytes,
    has_begun: bool,
    restarts: u8,
    readers: [Reader; 2],
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Header(Option<u64>, Bytes),
    Grow,
    StartOver,
    Land,
    Fail,
    Kill,
    Join(usize),
    Step(usize),
    Leave(usize),
}

impl World {
    fn new() -> Self {
        let readers = [Reader::Away, Reader::Away];
        let (total, length, bytes) = (None, 0, Bytes::Right);
        Self { progress: Some(Progress::Asking), total, length, bytes, has_begun: false, restarts: 0, readers }
    }

    fn key(&self) -> String {
        let progress = match &self.progress {
            None => "killed".to_owned(),
            Some(Progress::Growing { total, servable, .. }) => format!("growing {total:?} {servable}"),
            Some(Progress::Done { size, .. }) => format!("done {size}"),
            Some(other) => format!("{other:?}"),
        };
        let Self { progress: _, total, length, bytes, has_begun, restarts, readers } = self;
        format!("{progress} {total:?} {length} {bytes:?} {has_begun} {restarts} {readers:?}")
    }

    /// The state after `event`, or `None` where it cannot happen.
    fn after(&self, event: Event, file: &Arc<File>) -> Option<Self> {
        let mut next = self.clone();
        let growing = |next: &Self| Some(Progress::growing(Arc::clone(file), next.total, next.length));
        let is_running = matches!(self.progress, Some(Progress::Asking | Progress::Growing { .. }));
        match event {
            Event::Header(total, bytes) => {
                if !matches!(self.progress, Some(Progress::Asking)) {
                    return None;
                }
                (next.total, next.bytes) = (total, bytes);
                next.progress = growing(&next);
            }
            Event::Grow => {
                let is_open = matches!(self.progress, Some(Progress::Growing { .. }));
                if !is_open || self.length >= self.total.unwrap_or(TRUE_SIZE) {
                    return None;
                }
                next.length += 1;
                next.progress = growing(&next);
            }
            Event::StartOver => {
                let progress = next.progress.as_mut().filter(|_| is_running && self.restarts < 1)?;
                if !progress.start_over(self.has_begun) {
                    return None;
                }
                (next.length, next.total, next.restarts) = (0, None, self.restarts + 1);
            }
            Event::Land => {
                let is_all = self.length >= self.total.unwrap_or(TRUE_SIZE);
                if !matches!(self.progress, Some(Progress::Growing { .. })) || !is_all {
                    return None;
                }
                let is_right = self.bytes == Bytes::Right && self.length == TRUE_SIZE;
                next.progress = Some(match is_right {
                    true => Progress::Done { file: Arc::clone(file), size: self.length },
                    false => Progress::Failed(Failure::WrongDigest),
                });
            }
            Event::Fail if is_running => next.progress = Some(Progress::Failed(Failure::BrokenBody)),
            Event::Kill if is_running => next.progress = None,
            Event::Join(who) if self.readers[who] == Reader::Away => next.readers[who] = Reader::Waiting,
            Event::Leave(who) if matches!(self.readers[who], Reader::Waiting | Reader::Reading { .. }) => {
                next.readers[who] = Reader::Left;
            }
            Event::Step(who) => next.readers[who] = next.step(who)?,
            _ => return None,
        }
        Some(next)
    }

    /// What a reader does when it can do something: as `Seat::begin` and the response's body do it.
    fn step(&mut self, who: usize) -> Option<Reader> {
        match (&self.readers[who], &self.progress) {
            (Reader::Waiting, None) => Some(Reader::Refused),
            (Reader::Waiting, Some(progress)) if progress.can_begin(None) => {
                self.has_begun = true;
                let told = match progress {
                    Progress::Failed(_) | Progress::Asking => return Some(Reader::Refused),
                    Progress::Growing { total, .. } => *total,
                    Progress::Done { size, .. } => Some(*size),
                };
                Some(Reader::Reading { told, got: 0, of: self.bytes })
            }
            (Reader::Reading { .. }, None | Some(Progress::Failed(_))) => Some(Reader::Cut),
            (Reader::Reading { told, got, of }, Some(progress)) => {
                assert_eq!(*of, self.bytes, "a reader's file changed under it");
                assert!(told.is_none() || *told == self.total || matches!(progress, Progress::Done { .. }));
                let available = match progress {
                    Progress::Growing { servable, .. } => *servable,
                    Progress::Done { size, .. } => *size,
                    Progress::Asking => panic!("a reader was sent back to the start"),
                    Progress::Failed(_) => return Some(Reader::Cut),
                };
                assert!(available >= *got, "what was served shrank");
                let is_done = matches!(progress, Progress::Done { .. });
                match available > *got {
                    true => Some(Reader::Reading { told: *told, got: got + 1, of: *of }),
                    false if is_done => Some(Reader::Complete { got: *got, of: *of }),
                    false => None,
                }
            }
            _ => None,
        }
    }

    fn check(&self) {
        if let Some(Progress::Growing { total, servable, .. }) = &self.progress {
            assert!(*servable < total.unwrap_or(self.length).max(1), "the last byte was published before the hash");
        }
        for reader in &self.readers {
            match reader {
                Reader::Complete { got, of } => assert_eq!((*got, *of), (TRUE_SIZE, Bytes::Right)),
                Reader::Reading { told: Some(told), got, of: Bytes::Wrong } => assert!(got < told),
                _ => {}
            }
        }
    }
}

#[test]
fn every_order_of_events_keeps_the_rules() {
    let file = Arc::new(File::open("/dev/null").unwrap());
    let headers = [None, Some(TRUE_SIZE), Some(TRUE_SIZE - 1), Some(TRUE_SIZE + 1)];
    let mut events = vec![Event::Grow, Event::StartOver, Event::Land, Event::Fail, Event::Kill];
    events.extend(headers.into_iter().flat_map(|total| [Bytes::Right, Bytes::Wrong].map(|b| Event::Header(total, b))));
    events.extend([0, 1].into_iter().flat_map(|who| [Event::Join(who), Event::Step(who), Event::Leave(who)]));
    let mut seen = HashSet::new();
    let mut open = vec![World::new()];
    while let Some(world) = open.pop() {
        world.check();
        let mut next: Vec<_> = events.iter().filter_map(|event| world.after(*event, &file)).collect();
        next.retain(|world| seen.insert(world.key()));
        let has_ended = matches!(world.progress, None | Some(Progress::Done { .. } | Progress::Failed(_)));
        for who in [0, 1] {
            let is_open = matches!(world.readers[who], Reader::Waiting | Reader::Reading { .. });
            assert!(
                !has_ended || !is_open || world.after(Event::Step(who), &file).is_some(),
                "a reader waits for ever"
            );
        }
        open.extend(next);
    }
    assert!(seen.len() > 1000, "only {} states were reached", seen.len());
}

fn repository() -> RepositoryName {
    "library/app".parse().unwrap()
}

#[tokio::test]
async fn a_download_that_is_dropped_frees_its_readers() {
    let (publisher, mut seat) = begin(repository());
    drop(publisher);
    assert!(matches!(seat.begin(None).await, Progress::Failed(Failure::Stopping)));
}

#[tokio::test]
async fn only_a_download_that_nobody_reads_starts_over() {
    let file = Arc::new(File::open("/dev/null").unwrap());
    let (publisher, mut seat) = begin(repository());
    publisher.grow(&file, Some(10), 5);
    assert!(!publisher.has_begun() && publisher.start_over());
    publisher.grow(&file, Some(10), 5);
    seat.begin(None).await;
    assert!(publisher.has_begun() && !publisher.start_over());
}
