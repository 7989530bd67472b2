//! Measures the capture file on a real core, next to `zstd`:
//!
//!     cargo run --release -p scx-postmortem-format --example capture_bench -- CORE.elf [WORKDIR]
//!     ... capture_bench write CORE.elf OUT [LEVEL [THREADS]]      (to be timed from outside)
//!
//! CORE.elf is any x86-64 ELF core with physical addresses. Times are medians of several runs;
//! CPU time is user plus system of the whole process, children included.
#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "a measuring program"
)]

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use scx_postmortem_format::capture::{
    Capture, CaptureSpec, Extent, Manifest, MemorySource, OpenOptions, WriteOptions, write_capture,
};

/// The PT_LOADs of a core.
struct Core {
    file: Vec<u8>,
    segments: Vec<(Extent, usize)>,
}

fn field(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl Core {
    fn open(path: &Path) -> Self {
        let file = fs::read(path).unwrap();
        let bytes = file.as_slice();
        assert!(bytes.starts_with(b"\x7fELF"), "expected an ELF core");
        let at = field(bytes, 32) as usize;
        let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
        let headers = (0..count).map(|n| &bytes[at + n * 56..at + n * 56 + 56]);
        let mut segments: Vec<_> = headers
            .filter(|header| header[0] == 1)
            .map(|header| {
                let extent = Extent::new(field(header, 24), field(header, 32));
                (extent, field(header, 8) as usize)
            })
            .collect();
        segments.sort_by_key(|(extent, _)| extent.gpa);
        Self { file, segments }
    }

    fn write(&self, out: &Path, level: i32, threads: Option<usize>) -> u64 {
        let spec = CaptureSpec {
            memory: self.segments.iter().map(|(extent, _)| *extent).collect(),
            manifest: Manifest::default(),
            ..CaptureSpec::default()
        };
        let options = WriteOptions {
            level,
            threads,
            ..WriteOptions::default()
        };
        let mut out = File::create(out).unwrap();
        let summary = write_capture(&mut out, &spec, self, &options).unwrap();
        summary.file_bytes
    }
}

impl MemorySource for Core {
    fn read(&self, gpa: u64, buf: &mut [u8]) -> io::Result<()> {
        let bytes = self.slice(gpa, buf.len()).ok_or(io::ErrorKind::NotFound)?;
        buf.copy_from_slice(bytes);
        Ok(())
    }

    fn slice(&self, gpa: u64, bytes: usize) -> Option<&[u8]> {
        let (extent, offset) = self
            .segments
            .iter()
            .find(|(e, _)| e.gpa <= gpa && gpa + bytes as u64 <= e.gpa + e.bytes)?;
        let at = offset + (gpa - extent.gpa) as usize;
        self.file.as_slice().get(at..at + bytes)
    }
}

/// User plus system time of this process and of its children that ended, in seconds.
fn cpu() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: u32 = fields
        .split(' ')
        .skip(11)
        .take(4)
        .map(|n| n.parse::<u32>().unwrap())
        .sum();
    f64::from(ticks) / 100.0
}

/// Time on a CPU of this thread, in seconds; finer than [`cpu`].
fn thread_cpu() -> f64 {
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let (ns, _) = stat.split_once(' ').unwrap();
    ns.parse::<f64>().unwrap() / 1e9
}

/// Median wall and CPU time in seconds.
fn median(runs: usize, run: impl FnMut()) -> (f64, f64) {
    median_by(cpu, runs, run)
}

fn median_by(cpu: fn() -> f64, runs: usize, mut run: impl FnMut()) -> (f64, f64) {
    let mut wall = Vec::new();
    let mut used = Vec::new();
    for _ in 0..runs {
        let (start, before) = (Instant::now(), cpu());
        run();
        wall.push(start.elapsed().as_secs_f64());
        used.push(cpu() - before);
    }
    wall.sort_by(f64::total_cmp);
    used.sort_by(f64::total_cmp);
    (wall[runs / 2], used[runs / 2])
}

fn zstd(arguments: &[&str], input: &Path, output: &Path) {
    let status = Command::new("zstd")
        .args(arguments)
        .args(["-q", "-f"])
        .arg(input)
        .arg("-o")
        .arg(output)
        .stderr(Stdio::null())
        .status();
    assert!(status.is_ok_and(|s| s.success()), "zstd failed");
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn write_side(core: &Core, path: &Path, directory: &Path) {
    let mb = core.file.as_slice().len() as f64 / 1e6;
    println!("write                    size MB   wall s  MB/s wall    CPU s  MB/s per CPU-s");
    let row = |name: &str, bytes: u64, (wall, used): (f64, f64)| {
        println!(
            "{name:24} {:7.2} {wall:8.3} {:10.0} {used:8.2} {:15.0}",
            bytes as f64 / 1e6,
            mb / wall,
            mb / used
        );
        mb / used
    };
    let ours = directory.join("bench.core.zst");
    let theirs = directory.join("bench.elf.zst");
    for level in [1, 3] {
        let flag = format!("-{level}");
        // Interleaved, so that other load on the machine meets both alike.
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for _ in 0..5 {
            a.push(median(1, || bytes = core.write(&ours, level, None)));
            b.push(median(1, || zstd(&[&flag, "-T0"], path, &theirs)));
        }
        let middle = |v: &mut Vec<(f64, f64)>| {
            v.sort_by(|x, y| x.1.total_cmp(&y.1));
            v[v.len() / 2]
        };
        let zstd_bytes = fs::metadata(&theirs).unwrap().len();
        let mine = row(&format!("capture level {level}"), bytes, middle(&mut a));
        let peer = row(&format!("zstd {flag} -T0"), zstd_bytes, middle(&mut b));
        println!(
            "  ratio to zstd: throughput per CPU-second {:.2}, size {:.3}",
            mine / peer,
            bytes as f64 / zstd_bytes as f64
        );
    }
    let one = median(3, || {
        core.write(&ours, 1, Some(1));
    });
    let two = median(3, || {
        core.write(&ours, 1, Some(2));
    });
    println!(
        "  level 1, 1 thread {:.3} s, 2 threads {:.3} s: {:.2}x",
        one.0,
        two.0,
        one.0 / two.0
    );
}

fn read_side(path: &Path, directory: &Path) {
    println!("read");
    let file = fs::read(path).unwrap();
    let bytes = file.as_slice();
    let (open, _) = median(101, || {
        Capture::open(bytes).unwrap();
    });
    println!("  open                               {:9.3} ms", open * 1e3);
    let capture = Capture::open(bytes).unwrap();
    let mut pages = Vec::new();
    let found = std::sync::Mutex::new(Vec::new());
    capture
        .scan_memory(&|gpa, bytes| {
            let some = |(_, page): &(usize, &[u8])| page.iter().any(|b| *b != 0);
            let pages = bytes.chunks_exact(4096).enumerate().filter(some);
            let pages = pages.map(|(n, _)| gpa + n as u64 * 4096);
            found.lock().unwrap().extend(pages);
        })
        .unwrap();
    pages.append(&mut found.into_inner().unwrap());
    pages.sort_unstable();
    let mut state = 7;
    let scattered: Vec<u64> = (0..2500)
        .map(|_| pages[random(&mut state) as usize % pages.len()])
        .collect();
    // As a kernel's data lies: runs of pages in a few hundred frames.
    let grouped: Vec<u64> = (0..300)
        .flat_map(|_| {
            let at = random(&mut state) as usize % (pages.len() - 9);
            pages[at..at + 9].to_vec()
        })
        .take(2500)
        .collect();
    for (name, list) in [("grouped", &grouped), ("scattered", &scattered)] {
        // The first capture of a process touches fresh memory; the others get it from the first.
        let rows = [
            ("first", 256 << 20, 1),
            ("next", 256 << 20, 9),
            ("no cache", 0, 9),
        ];
        for (kind, cache_bytes, runs) in rows {
            let (wall, used) = median_by(thread_cpu, runs, || {
                let capture = Capture::open_with(bytes, OpenOptions { cache_bytes }).unwrap();
                let mut page = [0; 4096];
                for gpa in list {
                    capture.read_physical(*gpa, &mut page).unwrap();
                }
            });
            println!(
                "  open + 2500 pages {name:9} {kind:8} {:9.2} ms wall {:7.2} ms CPU",
                wall * 1e3,
                used * 1e3
            );
        }
        let capture = Capture::open_with(
            bytes,
            OpenOptions {
                cache_bytes: 256 << 20,
            },
        )
        .unwrap();
        let mut word = [0; 8];
        let mut read = || {
            for gpa in list {
                capture.read_physical(*gpa + 64, &mut word).unwrap();
            }
        };
        read();
        let (wall, _) = median(21, read);
        println!(
            "  8 bytes from a held frame, {name:9} {:8.0} ns",
            wall * 1e9 / 2500.0
        );
    }
    let (wall, used) = median(3, || {
        assert!(capture.verify(None).is_sound());
    });
    println!("  verify {wall:8.3} s wall {used:6.2} s CPU");
    let plain = directory.join("bench.elf");
    let (wall, used) = median(3, || {
        let mut out = File::create(&plain).unwrap();
        capture.export_sparse(&mut out, None).unwrap();
    });
    println!("  export {wall:8.3} s wall {used:6.2} s CPU");
    let (wall, used) = median(3, || zstd(&["-d"], path, &plain));
    println!("  zstd -d {wall:7.3} s wall {used:6.2} s CPU");
    fs::remove_file(&plain).unwrap();
}

/// Opening a capture of 64 GiB, all of it zeros but a little.
fn large(directory: &Path) {
    struct Sparse;
    impl MemorySource for Sparse {
        fn read(&self, _: u64, buf: &mut [u8]) -> io::Result<()> {
            buf.fill(1);
            Ok(())
        }
        fn data_extents(&self, range: Extent) -> io::Result<Vec<Extent>> {
            Ok(vec![Extent::new(range.gpa, 1 << 20)])
        }
    }
    let path = directory.join("bench-64g.core.zst");
    let spec = CaptureSpec {
        memory: vec![Extent::new(0, 3 << 30), Extent::new(4 << 30, 61 << 30)],
        ..CaptureSpec::default()
    };
    let start = Instant::now();
    let mut out = File::create(&path).unwrap();
    let summary = write_capture(&mut out, &spec, &Sparse, &WriteOptions::default()).unwrap();
    println!(
        "64 GiB, sparse: written in {:.3} s, {:.1} MB",
        start.elapsed().as_secs_f64(),
        summary.file_bytes as f64 / 1e6
    );
    let file = fs::read(&path).unwrap();
    let (open, _) = median(21, || {
        Capture::open(file.as_slice()).unwrap();
    });
    println!("  open                               {:9.3} ms", open * 1e3);
    let cut = &file.as_slice()[..file.as_slice().len() - 1];
    let (open, _) = median(5, || {
        Capture::open(cut).unwrap();
    });
    println!("  open without its table             {:9.3} ms", open * 1e3);
    fs::remove_file(&path).unwrap();
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (input, directory) = match words.as_slice() {
        ["write", input, output, rest @ ..] => {
            let number = |n: usize| rest.get(n).map(|word| word.parse::<u32>().unwrap());
            let level = number(0).map_or(1, |n| i32::try_from(n).unwrap());
            let threads = number(1).map(|n| n as usize);
            Core::open(Path::new(input)).write(Path::new(output), level, threads);
            return;
        }
        [input] => (Path::new(*input), std::env::temp_dir()),
        [input, directory] => (Path::new(*input), Path::new(*directory).to_owned()),
        _ => panic!("usage: capture_bench CORE.elf [WORKDIR]"),
    };
    let core = Core::open(input);
    write_side(&core, input, &directory);
    read_side(&directory.join("bench.core.zst"), &directory);
    large(&directory);
}
