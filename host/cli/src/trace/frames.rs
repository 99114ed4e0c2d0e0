//! Zstandard streams as files hold them: frames one after another, skippable frames between them, each checked.
//!
//! `ruzstd` decodes one frame. A trace may well be several: `pzstd` and `cat a.zst b.zst` write such. And what a frame
//! says of itself (its length, its checksum) is for the caller to compare.

use std::io::{self, Read};

use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// The first bytes of a Zstandard frame.
const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Whether a file that begins so is compressed: by a frame, or by one to skip.
pub(super) fn compressed(head: &[u8]) -> bool {
    head.starts_with(&MAGIC)
        || (head.len() >= 4 && (0x50..=0x5f).contains(&head[0]) && head[1..4] == [0x2a, 0x4d, 0x18])
}

/// The decompressed bytes of all frames.
pub(super) struct Frames<R> {
    source: R,
    decoder: FrameDecoder,
    /// Whether `decoder` is within a frame.
    open: bool,
    /// What this frame has given so far.
    given: u64,
    /// Bytes of the compressed stream before this frame.
    before: u64,
}

impl<R: Read> Frames<R> {
    pub(super) fn new(source: R) -> Self {
        Frames { source, decoder: FrameDecoder::new(), open: false, given: 0, before: 0 }
    }

    /// Opens the next frame; answers whether there is one.
    fn next_frame(&mut self) -> io::Result<bool> {
        loop {
            let mut first = [0];
            if self.source.read(&mut first)? == 0 {
                return Ok(false);
            }
            let mut source = Counted { inner: (&first[..]).chain(&mut self.source), bytes: 0 };
            match self.decoder.init(&mut source) {
                Ok(()) => {
                    (self.open, self.given) = (true, 0);
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    let skipped = io::copy(&mut source.by_ref().take(u64::from(length)), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(self.broken(&"a skippable frame ends early"));
                    }
                    self.before += source.bytes;
                }
                Err(error) => return Err(self.broken(&error)),
            }
        }
    }

    /// The end of a frame: its length and checksum, where it states them.
    fn check(&mut self) -> io::Result<()> {
        let stated = self.decoder.content_size();
        if stated != 0 && stated != self.given {
            return Err(self.broken(&format!("a frame of {stated} bytes holds {}", self.given)));
        }
        let checksum = self.decoder.get_checksum_from_data();
        if checksum.is_some() && checksum != self.decoder.get_calculated_checksum() {
            return Err(self.broken(&"the checksum of a frame does not match its content"));
        }
        self.before += self.decoder.bytes_read_from_source();
        self.open = false;
        Ok(())
    }

    fn broken(&self, why: &dyn std::fmt::Display) -> io::Error {
        let at = self.before + if self.open { self.decoder.bytes_read_from_source() } else { 0 };
        let why = format!("damaged or truncated zstd stream, at compressed byte {at}: {why}");
        io::Error::new(io::ErrorKind::InvalidData, why)
    }
}

impl<R: Read> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            if !self.open && !self.next_frame()? {
                return Ok(0);
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                if let Err(error) = self.decoder.decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1)) {
                    return Err(self.broken(&error));
                }
            }
            match self.decoder.read(buffer)? {
                0 => self.check()?,
                read => {
                    self.given += read as u64;
                    return Ok(read);
                }
            }
        }
    }
}

/// Counts what is read through it.
struct Counted<R> {
    inner: R,
    bytes: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes += read as u64;
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;

    fn frame(content: &[u8]) -> Vec<u8> {
        compress_to_vec(content, CompressionLevel::Fastest)
    }

    fn decode(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Frames::new(bytes).read_to_end(&mut out).map(|_| out)
    }

    fn skippable(length: u32, content: &[u8]) -> Vec<u8> {
        [&[0x5a, 0x2a, 0x4d, 0x18], &length.to_le_bytes()[..], content].concat()
    }

    #[test]
    fn frames_in_a_row_are_one_stream() {
        let (one, two) = (vec![1; 300_000], b"two".repeat(1000));
        let stream = [frame(&one), skippable(3, b"???"), frame(&[]), frame(&two), skippable(0, b"")].concat();
        assert_eq!(decode(&stream).unwrap(), [one, two].concat());
        assert!(compressed(&stream) && compressed(&skippable(1, b"?")) && !compressed(b"key\n") && !compressed(b""));
    }

    #[test]
    fn every_truncation_is_an_error() {
        let whole = [frame(&b"some content that compresses, compresses, compresses".repeat(50)), skippable(2, b"ab")];
        let ends = [whole[0].len(), whole.concat().len()];
        let stream = whole.concat();
        for end in 1..stream.len() {
            assert_eq!(decode(&stream[..end]).is_ok(), ends.contains(&end), "cut at {end}");
        }
    }

    #[test]
    fn a_flipped_bit_in_the_content_is_an_error() {
        let mut stream = frame(b"abcdefghijklmnopqrstuvwxyz0123456789");
        let middle = stream.len() / 2;
        stream[middle] ^= 1;
        let error = decode(&stream).unwrap_err().to_string();
        assert!(error.contains("zstd") && error.contains("at compressed byte"), "{error}");
    }
}
