//! A disk of a test's own whose power can be cut: an ext4 file system in a loop device, shut down without writing anything back
//! (`EXT4_IOC_SHUTDOWN`, no log flush).

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// An ext4 image and where it is mounted; unmounted when dropped.
pub struct Disk {
    image: PathBuf,
    pub at: PathBuf,
}

impl Disk {
    /// The reason where this user, or this machine, can't.
    pub fn make(dir: &Path) -> Result<Disk, String> {
        let disk = Disk {
            image: dir.join("image"),
            at: dir.join("disk"),
        };
        std::fs::create_dir(&disk.at).unwrap();
        let file = std::fs::File::create(&disk.image).unwrap();
        file.set_len(192 << 20).unwrap();
        run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk.image))?;
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).args([&self.image, &self.at]))
    }

    /// From a moment on nothing reaches the disk: not what was written without a sync, nor the file system's own journal.
    pub fn cut(&self) {
        // The call needs an ioctl, which safe Rust does not have; Debian's base system always has perl.
        const SHUTDOWN: &str = r#"open(my $disk, "<", $ARGV[0]) or die $!; my $no_log_flush = pack("I", 2);
            $| = 1; print "x"; <STDIN>; ioctl($disk, 0x8004587D, $no_log_flush) or die $!"#;
        let mut perl = Command::new("perl")
            .args(["-e", SHUTDOWN])
            .arg(&self.at)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        perl.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        // Dropped at once, which ends its waiting.
        drop(perl.stdin.take());
        assert!(perl.wait().unwrap().success());
    }

    /// Takes the dead file system off; there is power again.
    pub fn revive(&self) {
        // A program that another test starts in mounts of its own holds a copy of this one for a moment, and with it the dead file
        // system: mounted again it is still the dead one.
        let patience = std::time::Instant::now();
        loop {
            run(Command::new("umount").arg(&self.at)).unwrap();
            self.mount().unwrap();
            let probe = self.at.join("probe");
            if std::fs::write(&probe, "x")
                .and_then(|()| std::fs::remove_file(&probe))
                .is_ok()
            {
                return;
            }
            assert!(patience.elapsed() < std::time::Duration::from_secs(60), "it stays dead");
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount")
            .arg("-l")
            .arg(&self.at)
            .stderr(Stdio::null())
            .status();
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}
