use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use super::*;

fn read_as(name: &str, bytes: &[u8], options: &Options) -> Result<Vec<(u64, u32)>, TraceError> {
    let mut all = Vec::new();
    Reader::of(name, bytes, options)?.for_each(|request| all.push((request.key, request.size)))?;
    Ok(all)
}

fn read(name: &str, bytes: &[u8]) -> Result<Vec<(u64, u32)>, TraceError> {
    read_as(name, bytes, &Options::default())
}

fn keys(name: &str, bytes: &[u8]) -> Vec<u64> {
    read(name, bytes).unwrap().into_iter().map(|(key, _)| key).collect()
}

fn error(name: &str, bytes: &[u8]) -> TraceError {
    read(name, bytes).expect_err("must not be readable")
}

fn u64s(keys: impl IntoIterator<Item = u64>) -> Vec<u8> {
    keys.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn oracle(records: &[(u32, u64, u32, i64)]) -> Vec<u8> {
    let record = |&(time, key, size, next): &(u32, u64, u32, i64)| {
        [&time.to_le_bytes()[..], &key.to_le_bytes(), &size.to_le_bytes(), &next.to_le_bytes()].concat()
    };
    records.iter().flat_map(record).collect()
}

#[test]
fn u64_keys_plain_and_compressed() {
    // More than a block, and than a buffer.
    let expected: Vec<u64> = (0..50_000).map(|i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15)).collect();
    let bytes = u64s(expected.iter().copied());
    assert_eq!(keys("a.u64", &bytes), expected);
    let compressed = compress_to_vec(&bytes[..], CompressionLevel::Fastest);
    assert_eq!(keys("a.u64.zst", &compressed), expected);
    assert_eq!(keys("dir.lis/a.u64", &compressed), expected, "compression is told by content, not by name");
}

#[test]
fn u64_keys_and_u32_sizes() {
    let bytes: Vec<u8> = [(1u64, 2u32), (u64::MAX, u32::MAX)]
        .into_iter()
        .flat_map(|(key, size)| [&key.to_le_bytes()[..], &size.to_le_bytes()].concat())
        .collect();
    assert_eq!(read("a.u64u32", &bytes).unwrap(), [(1, 2), (u64::MAX, u32::MAX)]);
}

#[test]
fn oracle_general_by_name_and_by_content() {
    let bytes = oracle(&[(5, 7, 100, 2), (5, 8, 0, -1), (6, 7, 100, -1), (9, 1 << 60, 3, i64::MAX)]);
    let expected = [(7, 100), (7, 100), (1 << 60, 3)];
    for name in ["w.oracleGeneral", "w.oracleGeneral.bin", "whatever"] {
        assert_eq!(read(name, &bytes).unwrap(), expected, "{name}: without the request of size 0");
    }
    let compressed = compress_to_vec(&bytes[..], CompressionLevel::Fastest);
    assert_eq!(read("w.oracleGeneral.zst", &compressed).unwrap(), expected);
}

#[test]
fn a_truncated_record_is_named_with_its_offset() {
    let bytes = u64s(0..20_000);
    for cut in [1, 7, 8 * 19_999 + 1, bytes.len() - 1] {
        let error = error("a.u64", &bytes[..cut]);
        assert_eq!(error.place, Place::Byte(cut as u64 / 8 * 8));
        let text = error.to_string();
        assert!(text.starts_with("a.u64: byte ") && text.contains("where a record has 8"), "{text}");
        assert!(text.contains("truncated"), "{text}");
    }
    assert_eq!(error("a.u64u32", &bytes[..13]).place, Place::Byte(12));
    assert_eq!(error("a.oracleGeneral", &bytes[..25]).place, Place::Byte(24));
}

#[test]
fn a_damaged_compressed_trace_is_an_error_with_its_offset() {
    let whole = compress_to_vec(&u64s(0..50_000)[..], CompressionLevel::Fastest);
    for cut in [5, whole.len() / 2, whole.len() - 1] {
        let text = error("a.u64.zst", &whole[..cut]).to_string();
        assert!(text.contains("zstd") && text.contains("byte") && text.contains("fetch"), "{text}");
    }
}

/// Whatever the format, recognised or named: a flipped bit in the magic number made keys of the compressed bytes.
#[test]
fn what_is_named_compressed_and_is_not_is_an_error() {
    let mut damaged = compress_to_vec(&u64s(0..1_000)[..], CompressionLevel::Fastest);
    damaged[0] ^= 1;
    damaged.truncate(damaged.len() / 8 * 8);
    for (name, bytes) in
        [("a.u64.zst", &damaged[..]), ("A.U64.ZSTD", &damaged), ("a.keys.zst", b"a\nb\n"), ("a.zst", b"")]
    {
        for format in [None, Some(Format::U64)] {
            let error = read_as(name, bytes, &Options { format, columns: None }).expect_err(name);
            assert_eq!(error.place, Place::Byte(0), "{error}");
            assert!(
                error.to_string().contains("named as zstd") && error.to_string().contains("without .zst"),
                "{error}"
            );
        }
    }
}

#[test]
fn a_key_a_line() {
    let keys = keys("trace", b"7\nuser:1\r\n07\nuser:1\n18446744073709551615\n18446744073709551616");
    assert_eq!((keys[0], keys[4]), (7, u64::MAX), "numbers stand for themselves");
    assert_eq!(keys[1], keys[3], "with either end of line");
    let different: std::collections::BTreeSet<_> = keys.iter().collect();
    assert_eq!(different.len(), 5);
    // Bytes that are not UTF-8 are a key too; and so are many lines.
    assert_eq!(read("t.txt", b"\xff\xfe\n\xff\xfe\n").unwrap().len(), 2);
    let many: String = (0..40_000).map(|i| format!("key number {i}\n")).collect();
    assert_eq!(read("t.txt", many.as_bytes()).unwrap().len(), 40_000);
}

/// The hash of text keys is part of what a trace means: recorded once.
#[test]
fn text_keys_hash_the_same_for_ever() {
    assert_eq!(key_of(b"user:1"), 4_276_021_600_403_166_465);
}

#[test]
fn blank_lines_at_the_end_are_nothing_and_elsewhere_errors() {
    assert_eq!(keys("t.keys", b"1\n2\n\n \r\n\n"), [1, 2]);
    let error = error("t.keys", b"1\n\n\n2\n");
    assert_eq!(error.place, Place::Line(2));
    assert_eq!(error.to_string(), "t.keys: line 2: is blank\n  remove the line; a key is at least one character");
}

#[test]
fn arc_lines_ask_for_runs_of_blocks() {
    let bytes = b"100 3 0 0\n 7 1 0 1 \r\n5 0 0 2\n18446744073709551614 1 0 3\n";
    let expected = [100, 101, 102, 7, u64::MAX - 1];
    assert_eq!(keys("OLTP.lis", bytes), expected);
    assert_eq!(keys("OLTP", bytes), expected, "told by content");
    let damaged = error("OLTP", b"100 3 0 0\n7 1 0 1\n5 0 O 2\n");
    assert_eq!(damaged.place, Place::Line(3));
    assert!(damaged.to_string().contains("found \"5 0 O 2\"") && damaged.to_string().contains("--trace-format lis"));
    let as_keys = Options { format: Some(Format::Keys), columns: None };
    assert_eq!(read_as("OLTP", b"100 3 0 0\nb\n", &as_keys).unwrap().len(), 2);
    // A run that is longer than a block of requests.
    let run = keys("a.lis", b"10 50000 0 0\n1 1 0 1\n");
    assert_eq!((run.len(), run[49_999], run[50_000]), (50_001, 50_009, 1));
}

#[test]
fn malformed_arc_lines_are_named() {
    for (line, why) in [
        ("1 2 3", "expected four whole numbers, found \"1 2 3\""),
        ("1 2 3 4 5", "expected four"),
        ("1 2 3 x", "expected four"),
        ("-1 2 3 4", "expected four"),
        ("1 1048577 0 4", "1048577 blocks"),
        ("18446744073709551615 2 0 4", "64 bits"),
        ("99999999999999999999 2 0 4", "expected four"),
    ] {
        let error = error("a.lis", format!("1 1 0 0\n{line}\n").as_bytes());
        assert_eq!(error.place, Place::Line(2), "{line}");
        assert!(error.to_string().contains(why) && error.to_string().contains("first-block"), "{error}");
    }
}

#[test]
fn csv_with_a_header() {
    let expected = [(42, 512), (key_of(b"a,b"), 10)];
    for csv in [
        "time,id,size\n1,42,512\n2,\"a,b\",10\n3,9,0\n",
        "version,time,op,size,lbn\r\n1,33,2a,512,42\r\n1,34,2a,10,\"a,b\"\r\n",
        "# obj_id; obj_size\n42; 512\n\"a,b\";10",
        "time\tobj-id\tobj-size\n1\t42\t512\n1\ta,b\t10",
    ] {
        assert_eq!(read("t.csv", csv.as_bytes()).unwrap(), expected, "{csv}");
        assert_eq!(read("unnamed", csv.as_bytes()).unwrap(), expected, "told by content: {csv}");
    }
    assert_eq!(read("t.csv", b"time,key\n1,5\n").unwrap(), [(5, 1)], "sizes are 1 where there are none");
}

#[test]
fn csv_without_a_header() {
    assert_eq!(read("t.csv", b"1,42,512\n2,x,10\n").unwrap(), [(42, 512), (key_of(b"x"), 10)]);
    let columns = |names: &str| Options { columns: Some(names.split(',').map(Into::into).collect()), format: None };
    assert_eq!(read_as("t.csv", b"a,512\nb,1\n", &columns("id,size")).unwrap()[0], (key_of(b"a"), 512));
    assert_eq!(read_as("t.csv", b"9,a,512\n", &columns("_,_,id")).unwrap(), [(512, 1)]);
    assert_eq!(read_as("t.csv", b"what,ever\n3,4\n", &columns("size,id")).unwrap(), [(4, 3)], "a line of words");
    let error = read_as("t.csv", b"1,2\n", &columns("time,size")).unwrap_err().to_string();
    assert!(error.contains("names no column `id`"), "{error}");
}

#[test]
fn malformed_csv_lines_are_named() {
    for (line, why) in [
        ("1,42", "expected the size in column 3, found 2 columns"),
        ("1,42,big", "found \"big\""),
        ("1,42,-1", "found \"-1\""),
        ("1,42,4294967296", "32 bits"),
        ("1,,5", "an empty key"),
        ("1,\"42,5", "a quote opens and does not close"),
        (&",".repeat(300), "more than 256 columns"),
    ] {
        let error = error("t.csv", format!("time,id,size\n1,1,1\n{line}\n2,2,2\n").as_bytes());
        assert_eq!(error.place, Place::Line(3), "{line}");
        assert!(error.to_string().contains(why), "{error}");
    }
    assert!(error("t.csv", b"1,2\n").to_string().contains("--trace-columns"));
}

#[test]
fn what_is_no_trace_says_so() {
    assert!(error("t.u64", b"").to_string().contains("holds no requests"));
    assert!(error("t.csv", b"time,id,size\n").to_string().contains("holds no requests"));
    assert!(error("t", b"").to_string().contains("holds no requests"));
    assert!(error("t.bin", &u64s(1..100)).to_string().contains("--trace-format"));
    assert!(error("t.keys", &u64s(1..100)).to_string().contains("zero byte"));
    assert!(error("t.keys", &[b'x'; 70_000]).to_string().contains("a line of more than 65535 bytes"));
    let error = Reader::open(Path::new("no/such/trace"), &Options::default()).unwrap_err();
    assert!(error.to_string().starts_with("no/such/trace: cannot open"), "{error}");
}

/// A reader that gives a byte at a time, and is interrupted before each.
struct Slow<'a>(&'a [u8], bool);

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.1 = !self.1;
        if self.1 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let read = self.0.len().min(buffer.len()).min(1);
        buffer[..read].copy_from_slice(&self.0[..read]);
        self.0 = &self.0[read..];
        Ok(read)
    }
}

#[test]
fn it_does_not_matter_how_the_bytes_come() {
    let plain = u64s(0..1000);
    for bytes in [compress_to_vec(&plain[..], CompressionLevel::Fastest), plain] {
        let mut count = 0;
        let reader = Reader::of("a.u64", Slow(&bytes, false), &Options::default()).unwrap();
        reader
            .for_each(|request| {
                assert_eq!(request.key, count);
                count += 1;
            })
            .unwrap();
        assert_eq!(count, 1000);
    }
}

/// Whatever the bytes are, a reader answers with requests or an error: the fuzzers' property, over a small corpus.
#[test]
fn no_bytes_make_a_reader_panic() {
    let mut seed = 1u64;
    let mut random = move || {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        seed >> 33
    };
    let alphabet = b"0123456789,;\t \"\r\n#abcxyz\0\xff\x28\xb5\x2f\xfd";
    for _ in 0..3000 {
        let bytes: Vec<u8> = (0..random() % 80).map(|_| alphabet[random() as usize % alphabet.len()]).collect();
        for name in ["a.u64", "a.u64u32", "a.oracleGeneral", "a.csv", "a.lis", "a.keys", "a"] {
            let mut requests = 0u64;
            let _ =
                Reader::of(name, &bytes[..], &Options::default()).and_then(|reader| reader.for_each(|_| requests += 1));
            assert!(requests <= bytes.len() as u64 * LONGEST_RUN_A_BYTE, "{name}: {bytes:?}");
        }
    }
}

/// A line of an ARC trace, 8 bytes or more with its end, asks for 2^20 blocks at most.
const LONGEST_RUN_A_BYTE: u64 = (1 << 20) / 8;
