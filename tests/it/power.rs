//! Invariants I1 to I5 across power cuts: a file system of the daemon's own in a loop device, shut down under load as a
//! failing power supply does it, without writing anything back (`EXT4_IOC_SHUTDOWN`, no log flush), then mounted again.

use std::time::Duration;

use crate::campaign::{self, Ledger};
use crate::harness::{Daemon, Receiver, skipped};
use crate::power_disk::Disk;

/// `CLOSEHOOK_TEST_CUTS` asks for more than CI's 3.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_was_answered_is_lost_when_the_power_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let disk = match Disk::make(dir.path()) {
        Ok(disk) => disk,
        Err(why) => {
            skipped(&format!("loop device: power cuts need one, and root: {why}"));
            return;
        }
    };
    let mut random = campaign::seed();
    let receiver = Receiver::start(200).await;
    let data = disk.at.join("data");
    let mut daemon = Daemon::within(dir, data, &campaign::config(&receiver, &mut random));
    let ledger = Ledger::new();
    for round in 0..campaign::rounds("CLOSEHOOK_TEST_CUTS", 3) {
        // Every third time the power fails while it starts, too.
        if round % 3 == 2 {
            daemon.spawn();
            tokio::time::sleep(Duration::from_micros(random.u64(0..100_000))).await;
            disk.cut();
            daemon.kill();
            disk.revive();
        }
        daemon.configure(&campaign::config(&receiver, &mut random));
        daemon.run().await;
        let load = ledger.load(&daemon);
        campaign::random_moment(&ledger, &mut random).await;
        disk.cut();
        daemon.kill();
        load.stop().await;
        disk.revive();
    }
    daemon.run().await;
    ledger.reckon(&mut daemon, &receiver, &disk.at).await;
    assert!(ledger.answered() > 90);
    // Before the directory that it is in.
    drop(disk);
}
