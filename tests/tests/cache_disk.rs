//! A disk that is full, spoilt or strange costs a download at most: never a wrong byte, never a hit that is still right.
#![allow(clippy::expect_used, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use breakwater_tests::cache::pins::Pinning;
use breakwater_tests::cache::{Cache, End, PATIENCE, cold};
use breakwater_tests::upstream::{Blob, Content, Upstream};
use serde_json::json;

const REPOSITORY: &str = "library/app";
const MIB: usize = 1 << 20;

async fn warm(size: usize) -> (Upstream, Cache, Blob, PathBuf) {
    let (upstream, cache, blob) = cold::blob(REPOSITORY, size).await;
    assert_eq!(cache.get(&blob.blob_path(REPOSITORY)).await.status, 200);
    let path = landed(&cache, &blob).await;
    (upstream, cache, blob, path)
}

/// Waits until content is committed and its download has ended, which goes on serving what it has written until then.
async fn landed(cache: &Cache, blob: &Blob) -> PathBuf {
    let path = cache.await_kept(REPOSITORY, blob).await;
    let is_over = async || {
        let metrics = String::from_utf8(cache.admin("/metrics").await.body).expect("text");
        metrics.lines().any(|line| line.starts_with("breakwater_cache_flights{") && line.ends_with(" 0"))
    };
    cache.until("the download has ended", is_over).await;
    path
}

async fn assert_whole(cache: &Cache, blob: &Blob) {
    let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
    assert_eq!((answer.status, answer.end), (200, End::Complete));
    assert!(answer.body == blob.bytes, "the right bytes");
}

fn flip(path: &Path, offset: u64) {
    let mut file = fs::File::options().read(true).write(true).open(path).expect("the blob's file");
    let mut byte = [0];
    file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut byte)).expect("a byte");
    file.seek(SeekFrom::Start(offset)).and_then(|_| file.write_all(&[byte[0] ^ 1])).expect("another byte");
}

fn quarantined(cache: &Cache) -> usize {
    fs::read_dir(cache.data().join("quarantine")).expect("the quarantine").count()
}

/// As after a reboot: nobody knows what was verified.
fn forget_marks(cache: &Cache) {
    for entry in fs::read_dir(cache.data()).expect("the data folder").flatten() {
        if entry.file_name().to_string_lossy().starts_with("marks-") {
            fs::remove_file(entry.path()).expect("the marks");
        }
    }
}

#[tokio::test]
async fn a_flipped_byte_is_replaced_by_the_right_one_in_the_same_request() {
    for size in [1000, 5 * MIB] {
        let (upstream, mut cache, blob, path) = warm(size).await;
        for is_restarted in [false, true] {
            if is_restarted {
                cache.restart().await;
            }
            flip(&path, size as u64 / 2);
            let mark = upstream.mark();
            assert_whole(&cache, &blob).await;
            assert_eq!(upstream.content_requests_since(mark).len(), 1, "{size}, restarted: {is_restarted}");
            landed(&cache, &blob).await;
        }
        assert!(quarantined(&cache) > 0);
        let mark = upstream.mark();
        assert_whole(&cache, &blob).await;
        assert_eq!(upstream.content_requests_since(mark).len(), 0, "the new one stays");
    }
}

/// A disk need not wait with its faults until nobody writes any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_flips_while_a_blob_is_put_in_place_is_replaced_too() {
    let upstream = Upstream::start().await;
    let cache = Cache::start(&upstream).await;
    for seed in 0..150 {
        let blob = Content::blob(seed, 300_000);
        upstream.put_blob(REPOSITORY, &blob);
        let asked = blob.blob_path(REPOSITORY);
        let spoil = async {
            let path = loop {
                match cache.committed(&blob) {
                    Some(path) => break path,
                    None => tokio::task::yield_now().await,
                }
            };
            flip(&path, 1000);
        };
        // This one may be read from the file as it was spoilt: its client finds that out.
        let (_, spoilt) = tokio::join!(cache.get(&asked), tokio::time::timeout(PATIENCE, spoil));
        spoilt.expect("it is put in place");
        landed(&cache, &blob).await;
        assert_whole(&cache, &blob).await;
    }
}

#[tokio::test]
async fn a_part_of_a_spoilt_blob_is_right_too() {
    let (_upstream, cache, blob, path) = warm(5 * MIB).await;
    flip(&path, 100);
    let answer = cache.request("GET", &blob.blob_path(REPOSITORY)).range("0-999").answer().await;
    assert_eq!((answer.status, answer.end), (206, End::Complete));
    assert!(answer.body == blob.bytes[..1000]);
}

#[tokio::test]
async fn after_a_reboot_each_blob_is_hashed_before_it_is_a_hit() {
    let (upstream, mut cache, blob, path) = warm(5 * MIB).await;
    cache.kill9().await;
    forget_marks(&cache);
    cache.restart().await;
    let mark = upstream.mark();
    assert_whole(&cache, &blob).await;
    assert_eq!(upstream.content_requests_since(mark).len(), 0, "it is right, and so a hit");
    cache.kill9().await;
    forget_marks(&cache);
    let zeros = vec![0; 5 * MIB];
    fs::write(&path, zeros).expect("zeros, as a power cut leaves them");
    cache.restart().await;
    assert_whole(&cache, &blob).await;
}

#[tokio::test]
async fn whatever_stands_in_place_of_a_blob_is_set_aside() {
    for kind in ["folder", "link", "pipe", "longer"] {
        let (_upstream, cache, blob, path) = warm(1000).await;
        if kind != "longer" {
            fs::remove_file(&path).expect("the blob's file");
        }
        match kind {
            "folder" => fs::create_dir(&path).expect("a folder"),
            "link" => std::os::unix::fs::symlink("/etc/hostname", &path).expect("a link"),
            "pipe" => run("mkfifo", &[path.as_os_str()]),
            _ => fs::write(&path, vec![1; 2000]).expect("more bytes"),
        }
        assert_whole(&cache, &blob).await;
        let path = cache.await_kept(REPOSITORY, &blob).await;
        assert!(fs::symlink_metadata(path).expect("the blob's file").is_file(), "{kind}");
    }
}

#[tokio::test]
async fn whatever_stands_in_place_of_a_record_of_its_own_the_cache_starts() {
    let (_upstream, mut cache, blob, _path) = warm(1000).await;
    let own = |name: &str| {
        let entries = fs::read_dir(cache.data()).expect("the data folder").flatten().map(|entry| entry.path());
        let is_named = |path: &PathBuf| path.file_name().is_some_and(|it| it.to_string_lossy().starts_with(name));
        entries.into_iter().find(is_named).unwrap_or_else(|| cache.data().join(name))
    };
    for path in ["durable", "marks-", "pins.json"].map(own) {
        for obstacle in ["pipe", "link"] {
            cache.kill9().await;
            // It may be absent.
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            match obstacle {
                "pipe" => run("mkfifo", &[path.as_os_str()]),
                _ => std::os::unix::fs::symlink("/dev/zero", &path).expect("a link"),
            }
            cache.restart().await;
            assert_whole(&cache, &blob).await;
        }
    }
}

#[tokio::test]
async fn records_that_are_broken_are_asked_for_anew() {
    let upstream = Upstream::start().await;
    let image = Content::image(1, &[1000]);
    upstream.push(REPOSITORY, "v1", &image);
    let cache = Cache::start(&upstream).await;
    let tag = "/v2/library/app/manifests/v1";
    for spoil in [
        |path: &Path| fs::write(path, b"").expect("an empty record"),
        |path: &Path| fs::write(path, [0; 100]).expect("zeros"),
        |path: &Path| {
            fs::remove_file(path).expect("the record");
            run("mkfifo", &[path.as_os_str()]);
        },
        |path: &Path| {
            fs::remove_file(path).and_then(|()| std::os::unix::fs::symlink("/dev/zero", path)).expect("a link");
        },
        |path: &Path| fs::remove_file(path).and_then(|()| fs::create_dir(path)).expect("a folder"),
    ] {
        assert_eq!(cache.get(tag).await.status, 200);
        let repository = cache.data().join("repositories").join(REPOSITORY);
        spoil(&repository.join("_tags/v1"));
        spoil(&repository.join("_links").join(image.manifest.hex()));
        let deadline = Instant::now() + PATIENCE;
        while !is_record(&repository.join("_tags/v1")) {
            assert!(Instant::now() < deadline, "the record is never whole again");
            let answer = cache.get(tag).await;
            assert_eq!((answer.status, answer.body == image.manifest.bytes), (200, true));
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

fn is_record(path: &Path) -> bool {
    let is_plain = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    is_plain && fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"{"))
}

/// A small file system of its own, unmounted at the end whatever happens.
struct Volume(tempfile::TempDir);

impl Volume {
    fn of(size: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let size = format!("size={size}");
        run(
            "mount",
            &[
                "-t".as_ref(),
                "tmpfs".as_ref(),
                "-o".as_ref(),
                size.as_ref(),
                "tmpfs".as_ref(),
                folder.path().as_os_str(),
            ],
        );
        Self(folder)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: a cache that is still being killed may hold it.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

fn run(program: &str, arguments: &[&OsStr]) {
    let done = Command::new(program).args(arguments).status().expect("a program");
    assert!(done.success(), "{program} {arguments:?}: this test needs root");
}

#[tokio::test]
async fn a_volume_smaller_than_the_limit_never_fills_up() {
    let (upstream, volume) = (Upstream::start().await, Volume::of("8m"));
    let blobs: Vec<Blob> = (0..16).map(|seed| Content::blob(seed, MIB)).collect();
    blobs.iter().for_each(|blob| upstream.put_blob(REPOSITORY, blob));
    let cache = Cache::of(&upstream).data(&volume.path().join("data")).flag("--cache-size", "40Gi").start().await;
    for blob in &blobs {
        assert_whole(&cache, blob).await;
    }
    cache.await_kept(REPOSITORY, &blobs[15]).await;
}

#[tokio::test]
async fn small_blobs_that_fill_a_volume_with_their_records_make_room_for_the_next() {
    let (upstream, volume) = (Upstream::start().await, Volume::of("8m"));
    let blobs: Vec<Blob> = (0..500).map(|seed| Content::blob(seed, 16 << 10)).collect();
    blobs.iter().for_each(|blob| upstream.put_blob(REPOSITORY, blob));
    let cache = Cache::of(&upstream).data(&volume.path().join("data")).flag("--cache-size", "40Gi").start().await;
    for blob in &blobs {
        assert_whole(&cache, blob).await;
    }
    let mark = upstream.mark();
    assert_whole(&cache, &blobs[499]).await;
    assert_eq!(upstream.content_requests_since(mark).len(), 0, "what came last is here");
}

#[tokio::test]
async fn a_full_disk_refuses_what_is_new_and_serves_what_is_here() {
    let (upstream, volume) = (Upstream::start().await, Volume::of("8m"));
    let (warm, small, large) = (Content::blob(1, MIB), Content::blob(2, 1000), Content::blob(3, 3 * MIB));
    [&warm, &small, &large].into_iter().for_each(|blob| upstream.put_blob(REPOSITORY, blob));
    let cache = Cache::of(&upstream).data(&volume.path().join("data")).start().await;
    assert_whole(&cache, &warm).await;
    cache.await_kept(REPOSITORY, &warm).await;
    let junk = volume.path().join("junk");
    let full = fs::write(&junk, vec![1; 16 * MIB]);
    assert!(full.is_err(), "others have filled the volume");
    for blob in [&small, &large] {
        let answer = cache.get(&blob.blob_path(REPOSITORY)).await;
        assert_eq!((answer.status, answer.end), (503, End::Complete), "{}", blob.len());
        assert_ne!(answer.error_code(), "");
    }
    assert_eq!(
        fs::read_dir(cache.data().join("partial")).expect("the folder").count(),
        0,
        "nothing half-written stays"
    );
    let mark = upstream.mark();
    assert_whole(&cache, &warm).await;
    assert_eq!(upstream.content_requests_since(mark).len(), 0, "hits go on");
    fs::remove_file(junk).expect("room again");
    let deadline = Instant::now() + PATIENCE;
    for blob in [&small, &large] {
        while cache.get(&blob.blob_path(REPOSITORY)).await.status != 200 {
            assert!(Instant::now() < deadline, "it never recovered");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_whole(&cache, blob).await;
    }
}

#[tokio::test]
async fn on_a_full_disk_pins_are_told_and_completed_when_there_is_room() {
    let (upstream, volume) = (Upstream::start().await, Volume::of("8m"));
    let image = Content::image(1, &[2 * MIB]);
    upstream.push(REPOSITORY, "v1", &image);
    let cache = Pinning::with(Cache::of(&upstream).data(&volume.path().join("data"))).await;
    let junk = volume.path().join("junk");
    assert!(fs::write(&junk, vec![1; 16 * MIB]).is_err(), "others have filled the volume");
    let images = json!([{"image": "library/app:v1"}]);
    let refused = cache.put(&images).await;
    assert_eq!((refused.status, refused.error_code().as_str()), (503, "UNAVAILABLE"));
    assert_eq!(cache.pins().await, json!([]), "the pins are as before");
    let junk = fs::OpenOptions::new().write(true).open(junk).expect("the junk");
    junk.set_len(7 * MIB as u64 - (MIB / 2) as u64).expect("room for the list and the manifest");
    cache.pin(&images).await;
    cache.await_pins("told", |images| images[0]["error"] == "disk").await;
    junk.set_len(0).expect("room for all");
    cache.await_complete().await;
}
