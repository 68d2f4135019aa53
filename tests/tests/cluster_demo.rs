//! What the demo shows, held as a test.
#![cfg(feature = "cluster")]

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_holds() -> anyhow::Result<()> {
    breakwater_tests::demo::show().await
}
