//! A file that is only read: what is written lies over it, in memory.
//!
//! Whoever looks at a file of redb's has to open it, and opening may repair it; which is not the looker's to do.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read as _, Seek as _, SeekFrom};

use parking_lot::Mutex;
use redb::StorageBackend;

/// A stretch of the file of which something was written, and its bytes, whole.
const PAGE: usize = 4096;

#[derive(Debug)]
pub(super) struct Overlay(Mutex<Layers>);

#[derive(Debug)]
struct Layers {
    under: fs::File,
    /// How many bytes of it count.
    under_len: u64,
    over: BTreeMap<u64, Box<[u8; PAGE]>>,
    len: u64,
}

impl Overlay {
    pub(super) fn of(under: fs::File) -> io::Result<Overlay> {
        let len = under.metadata()?.len();
        Ok(Overlay(Mutex::new(Layers { under, under_len: len, over: BTreeMap::new(), len })))
    }
}

impl Layers {
    /// Reads what lies there in the file, and zeroes behind its end.
    fn read_under(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let there = usize::try_from(self.under_len.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let (there, beyond) = out.split_at_mut(there);
        self.under.seek(SeekFrom::Start(offset))?;
        self.under.read_exact(there)?;
        beyond.fill(0);
        Ok(())
    }

    fn read(&mut self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.read_under(offset, out)?;
        let (first, last) = (offset / PAGE as u64, (offset + out.len() as u64).div_ceil(PAGE as u64));
        for (number, page) in self.over.range(first..last) {
            let begins = number * PAGE as u64;
            // What of the page is asked for, and where that is in the answer.
            let from = offset.saturating_sub(begins) as usize;
            let to = begins.saturating_sub(offset) as usize;
            let bytes = (PAGE - from).min(out.len() - to);
            out[to..to + bytes].copy_from_slice(&page[from..from + bytes]);
        }
        Ok(())
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        if offset.checked_add(data.len() as u64).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let (mut at, mut rest) = (offset, data);
        while !rest.is_empty() {
            let (number, from) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            if !self.over.contains_key(&number) {
                let mut page = Box::new([0; PAGE]);
                self.read_under(number * PAGE as u64, &mut page[..])?;
                self.over.insert(number, page);
            }
            let (now, later) = rest.split_at((PAGE - from).min(rest.len()));
            if let Some(page) = self.over.get_mut(&number) {
                page[from..from + now.len()].copy_from_slice(now);
            }
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// What is cut off is zeroes when it is there again.
    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.under_len = self.under_len.min(len);
            drop(self.over.split_off(&len.div_ceil(PAGE as u64)));
            if let Some(page) = self.over.get_mut(&(len / PAGE as u64)) {
                page[(len % PAGE as u64) as usize..].fill(0);
            }
        }
        self.len = len;
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.lock().read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.lock().set_len(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.lock().write(offset, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beside a vector, which is what it should be like; and the file is what it was.
    #[test]
    fn it_is_as_if_it_were_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mut model: Vec<u8> = (0..3 * PAGE + 100).map(|at| at as u8 | 1).collect();
        let before = model.clone();
        fs::write(&path, &model).unwrap();
        let overlay = Overlay::of(fs::File::open(&path).unwrap()).unwrap();
        let mut random = 1_u64;
        let mut draw = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % below
        };
        for _ in 0..2000 {
            match draw(8) {
                0 => {
                    let len = draw(6 * PAGE);
                    model.resize(len, 0);
                    overlay.set_len(len as u64).unwrap();
                }
                1..4 => {
                    let from = draw(model.len() + 1);
                    let len = draw((model.len() - from + 1).min(2 * PAGE + 1));
                    let data = vec![draw(256) as u8; len];
                    model[from..from + len].copy_from_slice(&data);
                    overlay.write(from as u64, &data).unwrap();
                }
                _ => {
                    let from = draw(model.len() + 1);
                    let mut out = vec![7; draw(model.len() - from + 1)];
                    overlay.read(from as u64, &mut out).unwrap();
                    assert!(out == model[from..from + out.len()], "from {from}, {} bytes", out.len());
                }
            }
            assert_eq!(overlay.len().unwrap(), model.len() as u64);
        }
        let end = model.len() as u64;
        assert!(
            overlay.read(end, &mut [0]).is_err()
                && overlay.write(end, &[0]).is_err()
                && before == fs::read(&path).unwrap()
        );
    }
}
