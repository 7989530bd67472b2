//! The command as a user or a script meets it: exit codes, sentences, files.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const STALL: &str = "stall-6.18";

fn corpus(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../corpus")
        .join(name);
    path.join("guest.core.zst")
}

fn analyze<I: AsRef<std::ffi::OsStr>>(args: &[I]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_analyze"))
        .args(args)
        .output()
        .unwrap()
}

fn code(output: &Output) -> i32 {
    output
        .status
        .code()
        .expect("the command was killed by a signal")
}

/// One line on stderr that begins with the command's name and holds `words`.
#[track_caller]
fn one_sentence(output: &Output, words: &str) {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(text.starts_with("analyze: "), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.contains(words), "expected {words:?} in: {text}");
}

/// A report was refused: exit code, sentence, nothing on stdout, no output file.
#[track_caller]
fn refused(file: &Path, expected: i32, words: &str) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("report.json");
    let output = analyze(&[
        file.as_os_str(),
        "--format".as_ref(),
        "json".as_ref(),
        "-o".as_ref(),
        out.as_os_str(),
    ]);
    assert_eq!(
        code(&output),
        expected,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    one_sentence(&output, words);
    assert!(output.stdout.is_empty());
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

fn written(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("input");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// A minimal ELF core: header, one PT_LOAD of `memory` at physical 0.
fn elf_core(memory: &[u8], paddrs: &[u64]) -> Vec<u8> {
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let count = u16::try_from(paddrs.len()).unwrap();
    elf.extend(4u16.to_le_bytes()); // ET_CORE
    elf.extend(62u16.to_le_bytes()); // EM_X86_64
    elf.extend(1u32.to_le_bytes());
    elf.extend(0u64.to_le_bytes()); // e_entry
    elf.extend(64u64.to_le_bytes()); // e_phoff
    elf.extend(0u64.to_le_bytes()); // e_shoff
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, count, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let data = 64 + 56 * u64::from(count);
    for paddr in paddrs {
        elf.extend(1u32.to_le_bytes()); // PT_LOAD
        elf.extend(7u32.to_le_bytes());
        let len = u64::try_from(memory.len()).unwrap();
        for word in [data, *paddr, *paddr, len, len, 0] {
            elf.extend(word.to_le_bytes());
        }
    }
    elf.extend(memory);
    elf
}

#[test]
fn a_missing_file() {
    refused(
        Path::new("/nonexistent/guest.core.zst"),
        4,
        "/nonexistent/guest.core.zst: No such file",
    );
}

#[test]
fn a_directory() {
    refused(Path::new(env!("CARGO_MANIFEST_DIR")), 4, "is a directory");
}

#[test]
fn a_named_pipe() {
    let dir = tempfile::tempdir().unwrap();
    let pipe = dir.path().join("pipe");
    let made = Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    // Nobody writes to it: whoever opens it waits for ever.
    refused(&pipe, 4, "is not a regular file");
    refused(Path::new("/dev/null"), 4, "is not a regular file");
    for command in ["info", "verify"] {
        let output = analyze(&[command.as_ref(), pipe.as_os_str()]);
        assert_eq!(code(&output), 4);
        one_sentence(&output, "is not a regular file");
    }
    // Neither is waited for, nor a file without end read, where a flag names it.
    let capture = corpus(STALL);
    for flag in ["--btf", "--vmlinux", "--system-map", "--vmcoreinfo"] {
        for file in [pipe.as_path(), Path::new("/dev/zero")] {
            let output = analyze(&[capture.as_os_str(), flag.as_ref(), file.as_os_str()]);
            assert_eq!(code(&output), 2);
            one_sentence(&output, "is not a regular file");
        }
    }
}

#[test]
fn a_misspelt_command() {
    for args in [["infos", "a"], ["a", "info"]] {
        let output = analyze(&args);
        assert_eq!(code(&output), 2, "{args:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(
            text.contains(
                "one of info, verify, query, shell, diff, golden, batch, upgrade, reduce, tables, export"
            ),
            "{text}"
        );
    }
    let flag = analyze(&["a", "--formt", "json"]);
    assert_eq!(code(&flag), 2);
    assert!(String::from_utf8_lossy(&flag.stderr).contains("'--format'"));
}

#[test]
fn an_empty_file() {
    let (_dir, path) = written(b"");
    refused(&path, 4, "the file is empty");
}

#[test]
fn foreign_files() {
    let (_dir, path) = written(b"#!/bin/sh\necho this is no core file at all, it is a script\n");
    refused(&path, 4, "expected");
    // A zstd file that is no capture.
    let (_dir, path) = written(&[0x28, 0xb5, 0x2f, 0xfd, 0x20, 0, 1, 0, 0]);
    refused(&path, 4, "expected");
    // A program.
    let own = PathBuf::from(env!("CARGO_BIN_EXE_analyze"));
    refused(&own, 4, "not a core");
    // A 32-bit ELF.
    let mut elf = elf_core(&[0; 64], &[0]);
    elf[4] = 1;
    let (_dir, path) = written(&elf);
    refused(&path, 4, "not 64-bit");
    // Another machine.
    let mut elf = elf_core(&[0; 64], &[0]);
    elf[18] = 183;
    let (_dir, path) = written(&elf);
    refused(&path, 4, "machine is 183, not x86-64");
    // A process core: no physical addresses.
    let (_dir, path) = written(&elf_core(&[1; 4096], &[0, 0]));
    refused(&path, 4, "core of a process");
}

#[test]
fn elf_headers_that_lie() {
    let whole = elf_core(&[0; 8192], &[0]);
    // Cut inside the ELF header and inside the program headers.
    for len in [20, 63, 70, 119] {
        let (_dir, path) = written(&whole[..len]);
        refused(&path, 4, "expected");
    }
    // 65,534 program headers in a file of one.
    let mut elf = whole.clone();
    elf[56..58].copy_from_slice(&65_534u16.to_le_bytes());
    let (_dir, path) = written(&elf);
    refused(&path, 4, "claims 65534 program headers");
    // The same through PN_XNUM, with no section header to hold the number.
    let mut elf = whole;
    elf[56..58].copy_from_slice(&0xffffu16.to_le_bytes());
    elf[40..48].copy_from_slice(&u64::MAX.to_le_bytes());
    let (_dir, path) = written(&elf);
    refused(&path, 4, "holds no memory");
}

#[test]
fn a_core_without_vmcoreinfo() {
    let (_dir, path) = written(&elf_core(&vec![0x5a; 1 << 20], &[0]));
    refused(&path, 5, "looked for VMCOREINFO");
    let output = analyze(&[path.as_os_str()]);
    one_sentence(&output, "--vmcoreinfo");
}

#[test]
fn a_kernel_without_btf() {
    let capture = corpus(STALL);
    let dir = tempfile::tempdir().unwrap();
    let elf = dir.path().join("core.elf");
    let export = analyze(&[
        "export".as_ref(),
        capture.as_os_str(),
        "-o".as_ref(),
        elf.as_os_str(),
    ]);
    assert_eq!(
        code(&export),
        0,
        "{}",
        String::from_utf8_lossy(&export.stderr)
    );
    // The BTF magic and version, flags 0, header length 24: wherever it is in memory. Those of BPF
    // programs have less than a megabyte of types, and stay.
    let mut bytes = fs::read(&elf).unwrap();
    let header = [0x9f, 0xeb, 1, 0, 24, 0, 0, 0];
    let mut hits = 0;
    for at in (0..bytes.len() - 16).step_by(4) {
        if bytes[at..at + 8] == header && bytes[at + 14] >= 0x10 {
            bytes[at] = 0;
            hits += 1;
        }
    }
    assert!(hits > 0, "no BTF in the exported core");
    fs::write(&elf, bytes).unwrap();
    refused(
        &elf,
        5,
        "BTF magic is 0xeb00, which is not plausible (0xeb9f); supply them with --btf FILE",
    );
    // And the flag does supply it: the same capture's BTF, out of the untouched image.
    let blob = dir.path().join("vmlinux.btf");
    let kernel = scx_postmortem_analyze::kernel::Kernel::find(
        scx_postmortem_analyze::source::Image::open(&capture).unwrap(),
        &scx_postmortem_analyze::kernel::Overrides::default(),
    )
    .unwrap();
    fs::write(&blob, kernel.btf.blob()).unwrap();
    let output = analyze(&[elf.as_os_str(), "--btf".as_ref(), blob.as_os_str()]);
    assert_eq!(
        code(&output),
        0,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("types: --btf"), "provenance is not named");
    assert!(text.contains("starve-"), "no starved task in the report");
}

#[test]
fn a_truncated_capture_gives_a_partial_report_or_a_sentence() {
    let whole = fs::read(corpus(STALL)).unwrap();
    // Cut in the preamble: nothing is left to say.
    let (_dir, path) = written(&whole[..100]);
    refused(&path, 4, "truncated");
    // Cut near the end: all but the last memory is there.
    let (_dir, path) = written(&whole[..whole.len() - whole.len() / 50]);
    let output = analyze(&[path.as_os_str()]);
    let text = String::from_utf8_lossy(&output.stdout);
    match code(&output) {
        3 => assert!(text.contains("incomplete"), "{text}"),
        5 => one_sentence(&output, "no usable kernel"),
        other => panic!("exit {other}: {}", String::from_utf8_lossy(&output.stderr)),
    }
    let info = analyze(&["info".as_ref(), path.as_os_str()]);
    assert_eq!(code(&info), 3);
    assert!(String::from_utf8_lossy(&info.stdout).contains("does not end in a seek table"));
    let verify = analyze(&["verify".as_ref(), path.as_os_str()]);
    assert_eq!(
        code(&verify),
        7,
        "{}",
        String::from_utf8_lossy(&verify.stdout)
    );
}

#[test]
fn a_truncated_elf_core_says_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let elf = dir.path().join("core.elf");
    let capture = corpus(STALL);
    let export = analyze(&[
        "export".as_ref(),
        capture.as_os_str(),
        "-o".as_ref(),
        elf.as_os_str(),
    ]);
    assert_eq!(code(&export), 0);
    let file = fs::OpenOptions::new().write(true).open(&elf).unwrap();
    let whole = file.metadata().unwrap().len();
    // The last range, which holds no kernel, and a page of the one before.
    file.set_len(whole - (256 << 10) - 4096).unwrap();
    let output = analyze(&[elf.as_os_str()]);
    assert_eq!(code(&output), 3);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("the file is truncated: 266240 bytes"),
        "{text}"
    );
    assert!(text.contains("starve-"), "no starved task in the report");
    // Not even half of it: no kernel, and the same reason.
    file.set_len(whole / 4).unwrap();
    refused(&elf, 5, "the file is truncated");
    let info = analyze(&["info".as_ref(), elf.as_os_str()]);
    assert_eq!(code(&info), 3);
}

#[test]
fn a_damaged_capture_is_exported_whole_or_not_at_all() {
    let mut bytes = fs::read(corpus(STALL)).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x10;
    let (_input, path) = written(&bytes);
    let dir = tempfile::tempdir().unwrap();
    let elf = dir.path().join("core.elf");
    let output = analyze(&[
        "export".as_ref(),
        path.as_os_str(),
        "-o".as_ref(),
        elf.as_os_str(),
    ]);
    assert_eq!(code(&output), 4);
    one_sentence(&output, "is corrupt");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_truncated_capture_is_exported_under_another_name() {
    let bytes = fs::read(corpus(STALL)).unwrap();
    let (_input, path) = written(&bytes[..bytes.len() / 2]);
    let dir = tempfile::tempdir().unwrap();
    let elf = dir.path().join("core.elf");
    let output = analyze(&[
        "export".as_ref(),
        path.as_os_str(),
        "-o".as_ref(),
        elf.as_os_str(),
    ]);
    assert_eq!(code(&output), 3);
    one_sentence(&output, "core.elf.partial: ");
    assert!(!elf.exists());
    let kept = fs::metadata(dir.path().join("core.elf.partial")).unwrap();
    assert!(kept.len() > 1 << 20, "{}", kept.len());
}

#[test]
fn a_reduced_capture_gives_the_same_report_from_a_fifth_of_the_file() {
    let capture = corpus(STALL);
    let dir = tempfile::tempdir().unwrap();
    let small = dir.path().join("small.core.zst");
    let output = analyze(&[
        "reduce".as_ref(),
        capture.as_os_str(),
        "--level".as_ref(),
        "9".as_ref(),
        "-o".as_ref(),
        small.as_os_str(),
    ]);
    assert_eq!(
        code(&output),
        0,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let bytes = |path: &Path| fs::metadata(path).unwrap().len();
    assert!(bytes(&small) * 4 < bytes(&capture), "{}", bytes(&small));
    let text = |path: &Path| {
        let output = analyze(&[path.as_os_str()]);
        // What was left out on purpose is no damage.
        assert_eq!(code(&output), 0);
        String::from_utf8(output.stdout).unwrap()
    };
    let (whole, reduced) = (text(&capture), text(&small));
    assert!(reduced.contains("\nleft out: "), "{reduced}");
    let rest = |text: &str| {
        let lines = text.lines().filter(|line| {
            !["input: ", "left out: "]
                .iter()
                .any(|start| line.starts_with(start))
        });
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(rest(&whole), rest(&reduced));
    // It is a core of its own right, and what is not in it reads as missing, not as zero.
    assert_eq!(code(&analyze(&["verify".as_ref(), small.as_os_str()])), 0);
    let image = scx_postmortem_analyze::source::Image::open(&small).unwrap();
    let image_whole = scx_postmortem_analyze::source::Image::open(&capture).unwrap();
    let mut missing = 0;
    for region in image_whole.memory.regions() {
        for page in (0..region.len / 4096).step_by(64) {
            let at = region.start.add(page * 4096);
            let mut buf = [0; 8];
            match image.memory.read(at, &mut buf) {
                Ok(()) => {
                    let mut same = [0; 8];
                    image_whole.memory.read(at, &mut same).unwrap();
                    assert_eq!(buf, same);
                }
                Err(error) => {
                    assert!(error.to_string().contains("was not captured"), "{error}");
                    missing += 1;
                }
            }
        }
    }
    assert!(missing > 100, "{missing}");
    // Not over its input, and not from what holds no kernel.
    let over = analyze(&[
        "reduce".as_ref(),
        small.as_os_str(),
        "-o".as_ref(),
        small.as_os_str(),
    ]);
    assert_eq!(code(&over), 1);
    let (_dir, empty) = written(&elf_core(&[0; 4096], &[0]));
    let out = dir.path().join("none.core.zst");
    let none = analyze(&[
        "reduce".as_ref(),
        empty.as_os_str(),
        "-o".as_ref(),
        out.as_os_str(),
    ]);
    assert_eq!(code(&none), 5);
    assert!(!out.exists());
}

/// One of the captures of tests/findings, and the tables that it was reduced without.
fn without_tables() -> (PathBuf, PathBuf) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/findings");
    (
        folder.join("fifo.core.zst"),
        folder.join("kernel-7.3.tables.zst"),
    )
}

#[test]
fn the_kernels_tables_are_found_beside_the_capture() {
    let (capture, tables) = without_tables();
    let brief = |file: &Path| analyze(&[file.as_os_str(), "--brief".as_ref()]);
    assert_eq!(code(&brief(&capture)), 0);
    let dir = tempfile::tempdir().unwrap();
    let alone = dir.path().join("fifo.core.zst");
    fs::copy(&capture, &alone).unwrap();
    // A capture that asks for the same tables is not these, whatever it is called.
    fs::copy(&capture, dir.path().join("a.tables.zst")).unwrap();
    let output = brief(&alone);
    assert_eq!(code(&output), 5);
    one_sentence(&output, "put that file beside the capture");
    fs::copy(&tables, dir.path().join("my-tables.core.zst")).unwrap();
    let output = brief(&alone);
    assert_eq!(code(&output), 0);
    assert_eq!(output.stdout, brief(&capture).stdout);
}

#[test]
fn a_capture_without_its_tables_is_not_exported() {
    let (capture, _) = without_tables();
    let dir = tempfile::tempdir().unwrap();
    let elf = dir.path().join("core.elf");
    let output = analyze(&[
        "export".as_ref(),
        capture.as_os_str(),
        "-o".as_ref(),
        elf.as_os_str(),
    ]);
    assert_eq!(code(&output), 4);
    one_sentence(&output, "export the capture that this one was made of");
    assert!(!elf.exists());
}

#[test]
fn help_that_cannot_be_written_is_an_error() {
    for flag in ["--help", "--version"] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_analyze"))
            .arg(flag)
            .stdout(full)
            .stderr(std::process::Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(code(&output), 1, "{flag}");
        one_sentence(&output, "standard output: ");
        let output = analyze(&[flag]);
        assert_eq!(code(&output), 0, "{flag}");
        assert!(
            String::from_utf8(output.stdout)
                .unwrap()
                .contains("analyze")
        );
    }
}

#[test]
fn commands_for_captures_say_that_a_core_is_none() {
    let (_dir, path) = written(&elf_core(&[0; 4096], &[0]));
    let verify = analyze(&["verify".as_ref(), path.as_os_str()]);
    assert_eq!(code(&verify), 4);
    one_sentence(&verify, "has no checksums to verify\n");
    for output in ["-", "core.elf"] {
        let dir = tempfile::tempdir().unwrap();
        let export = Command::new(env!("CARGO_BIN_EXE_analyze"))
            .current_dir(dir.path())
            .args(["export".as_ref(), path.as_os_str()])
            .args(["-o", output])
            .output()
            .unwrap();
        assert_eq!(code(&export), if output == "-" { 1 } else { 4 });
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_capture_of_a_newer_version() {
    let mut bytes = fs::read(corpus(STALL)).unwrap();
    // The major version follows the eight bytes of the mark, behind the skippable header.
    bytes[16] = 2;
    // A file of the future has a preamble that is in order: 256 bytes that end in their hash.
    let hash = xxhash_rust::xxh3::xxh3_64(&bytes[..248]);
    bytes[248..256].copy_from_slice(&hash.to_le_bytes());
    let (_dir, path) = written(&bytes);
    refused(&path, 4, "use a newer release");
}

#[test]
fn a_flipped_byte_is_never_passed_over() {
    let whole = fs::read(corpus(STALL)).unwrap();
    let sound = analyze(&[corpus(STALL).as_os_str()]).stdout;
    for part in 1..12 {
        let mut bytes = whole.clone();
        let at = whole.len() / 12 * part;
        bytes[at] ^= 0x10;
        let (_dir, path) = written(&bytes);
        let verify = analyze(&["verify".as_ref(), path.as_os_str()]);
        assert_eq!(
            code(&verify),
            7,
            "byte {at}: {}",
            String::from_utf8_lossy(&verify.stdout)
        );
        // The report either did not need the frame, or says that it was damaged.
        let report = analyze(&[path.as_os_str()]);
        match code(&report) {
            0 => assert!(
                report.stdout == sound,
                "byte {at}: another report, and no warning"
            ),
            3 => assert!(String::from_utf8_lossy(&report.stdout).contains("corrupt")),
            5 => one_sentence(&report, "corrupt"),
            other => panic!("byte {at}: exit {other}"),
        }
    }
}

#[test]
fn info_verify_export_on_a_sound_capture() {
    let capture = corpus(STALL);
    let info = analyze(&["info".as_ref(), capture.as_os_str()]);
    assert_eq!(code(&info), 0);
    let text = String::from_utf8(info.stdout).unwrap();
    assert!(text.contains("6.18.15+deb13-cloud-amd64"), "{text}");
    assert!(text.contains("VMCOREINFO 0x0"), "{text}");
    let verify = analyze(&["verify".as_ref(), capture.as_os_str()]);
    assert_eq!(code(&verify), 0);
    assert!(String::from_utf8_lossy(&verify.stdout).contains(": sound, "));
    assert!(verify.stderr.is_empty(), "progress in a pipe");

    // The exported core gives the same report, but for what names the file's kind.
    let dir = tempfile::tempdir().unwrap();
    let elf = dir.path().join("core.elf");
    assert_eq!(
        code(&analyze(&[
            "export".as_ref(),
            capture.as_os_str(),
            "-o".as_ref(),
            elf.as_os_str()
        ])),
        0
    );
    let of = |file: &Path| {
        let output = analyze(&[file.as_os_str(), "--format".as_ref(), "json".as_ref()]);
        assert_eq!(
            code(&output),
            0,
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    };
    // An ELF core has no checksums that could be told by a digest.
    let whole = of(&capture);
    let digest = whole.find(",\"digest\":\"").unwrap();
    let (before, from) = whole.split_at(digest);
    let after = from.get(",\"digest\":\"".len() + 33..).unwrap();
    assert_eq!(
        of(&elf).replace("elf-core", "capture"),
        format!("{before}{after}")
    );
}

#[test]
fn output_goes_to_its_file_whole_or_not_at_all() {
    let capture = corpus(STALL);
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("report.txt");
    let done = analyze(&[capture.as_os_str(), "-o".as_ref(), out.as_os_str()]);
    assert_eq!(code(&done), 0);
    assert!(done.stdout.is_empty());
    assert_eq!(
        fs::read(&out).unwrap(),
        analyze(&[capture.as_os_str()]).stdout
    );
    let nowhere = dir.path().join("no/such/dir/report.txt");
    let failed = analyze(&[capture.as_os_str(), "-o".as_ref(), nowhere.as_os_str()]);
    assert_eq!(code(&failed), 1);
    one_sentence(&failed, "no/such/dir/report.txt");
}

#[test]
fn no_output_destroys_a_core() {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join("own.core.zst");
    fs::copy(corpus(STALL), &own).unwrap();
    let before = fs::read(&own).unwrap();
    for args in [
        vec![own.as_os_str(), "-o".as_ref(), own.as_os_str()],
        vec![
            "export".as_ref(),
            own.as_os_str(),
            "-o".as_ref(),
            own.as_os_str(),
        ],
    ] {
        let output = analyze(&args);
        assert_eq!(code(&output), 1);
        one_sentence(&output, "is the input");
    }
    // Another core, and a link to one.
    let capture = corpus(STALL);
    let other = analyze(&[capture.as_os_str(), "-o".as_ref(), own.as_os_str()]);
    assert_eq!(code(&other), 1);
    one_sentence(&other, "is not overwritten");
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&own, &link).unwrap();
    let linked = analyze(&[capture.as_os_str(), "-o".as_ref(), link.as_os_str()]);
    assert_eq!(code(&linked), 1);
    one_sentence(&linked, "is a symbolic link");
    assert!(
        fs::symlink_metadata(&link)
            .unwrap()
            .file_type()
            .is_symlink()
    );
    assert!(fs::read(&own).unwrap() == before);
    // A dash is standard output.
    let dash = analyze(&[own.as_os_str(), "-o".as_ref(), "-".as_ref()]);
    assert_eq!(code(&dash), 0);
    assert!(String::from_utf8(dash.stdout).unwrap().contains("starve-"));
}

#[test]
fn a_kernel_without_sched_ext() {
    // The same image with types in which the kernel has no sched_ext.
    let capture = corpus(STALL);
    let kernel = scx_postmortem_analyze::kernel::Kernel::find(
        scx_postmortem_analyze::source::Image::open(&capture).unwrap(),
        &scx_postmortem_analyze::kernel::Overrides::default(),
    )
    .unwrap();
    let mut blob = kernel.btf.blob().to_vec();
    let name = b"\0sched_ext_entity\0";
    let at = blob.windows(name.len()).position(|w| w == name).unwrap();
    blob[at + 1] = b'S';
    let dir = tempfile::tempdir().unwrap();
    let btf = dir.path().join("btf");
    fs::write(&btf, blob).unwrap();
    let output = analyze(&[capture.as_os_str(), "--btf".as_ref(), btf.as_os_str()]);
    assert_eq!(
        code(&output),
        6,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("built without sched_ext"), "{text}");
    assert!(text.contains("per_cpu_time: 2 CPUs captured"), "{text}");
}

#[test]
fn flags_name_files_that_exist_and_fit() {
    let capture = corpus(STALL);
    for flag in ["--btf", "--vmlinux", "--system-map", "--vmcoreinfo"] {
        let output = analyze(&[capture.as_os_str(), flag.as_ref(), "/nonexistent".as_ref()]);
        assert_eq!(code(&output), 2, "{flag}");
        one_sentence(&output, flag);
    }
    // The types of another kernel build are noticed.
    let kernel = scx_postmortem_analyze::kernel::Kernel::find(
        scx_postmortem_analyze::source::Image::open(&corpus("error-7.3")).unwrap(),
        &scx_postmortem_analyze::kernel::Overrides::default(),
    )
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let btf = dir.path().join("btf");
    fs::write(&btf, kernel.btf.blob()).unwrap();
    let output = analyze(&[capture.as_os_str(), "--btf".as_ref(), btf.as_os_str()]);
    assert_eq!(code(&output), 5);
    one_sentence(&output, "do not fit this kernel");
    // VMCOREINFO from a file does what the note does.
    let own = scx_postmortem_analyze::source::Image::open(&capture).unwrap();
    let text = dir.path().join("vmcoreinfo");
    fs::write(&text, own.vmcoreinfo.unwrap()).unwrap();
    let output = analyze(&[
        capture.as_os_str(),
        "--vmcoreinfo".as_ref(),
        text.as_os_str(),
    ]);
    assert_eq!(code(&output), 0);
    assert!(String::from_utf8_lossy(&output.stdout).contains("vmcoreinfo: --vmcoreinfo"));
}

#[test]
fn kdump_cores_whose_text_is_in_two_segments_open() {
    // One PT_LOAD for all of memory and, as kdump has it, one more inside it.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("kdump");
    fs::write(&path, elf_core(&[7; 8192], &[0x10_0000, 0x10_1000])).unwrap();
    let image = scx_postmortem_analyze::source::Image::open(&path).unwrap();
    assert_eq!(image.memory_bytes(), 8192 + 4096);
    let mut word = [0; 8];
    image
        .memory
        .read(scx_postmortem_analyze::addr::Gpa(0x10_2ff8), &mut word)
        .unwrap();
    assert_eq!(word, [7; 8]);
}

#[test]
fn help_opens_with_examples_and_wrong_arguments_are_2() {
    let help = analyze(&["--help"]);
    assert_eq!(code(&help), 0);
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(text.starts_with("Examples:"), "{text}");
    assert!(text.contains("Exit codes:"));
    assert_eq!(code(&analyze(&["--no-such-flag"])), 2);
    assert_eq!(code(&analyze::<&str>(&[])), 2);
}
