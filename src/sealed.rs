//! Values in files that this tool alone reads again, with a hash behind them: what a disk or a copy has damaged is not believed.

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};
use std::io::{BufReader, Read, Result, Seek, SeekFrom, Write};

/// Bytes of the hash.
const SEAL: usize = 32;
/// Room for the texts of a value; numbers need none.
const LONGEST_TEXT: usize = 1 << 22;

/// Writes a value, and behind it a SHA-256 of its bytes.
///
/// # Errors
/// Those of `out`.
pub(crate) fn write_sealed<T: Serialize + ?Sized>(value: &T, out: impl Write) -> Result<()> {
    let sealing = Sealing { out, hash: Sha256::new() };
    let Sealing { mut out, hash } = postcard::to_io(value, sealing).map_err(std::io::Error::other)?;
    out.write_all(&hash.finalize())?;
    out.flush()
}

/// The value that [`write_sealed`] wrote; none if a byte of it is another, or if it is of another kind.
pub(crate) fn read_sealed<T: DeserializeOwned>(mut from: impl Read + Seek) -> Option<T> {
    let length = from.seek(SeekFrom::End(0)).ok()?.checked_sub(SEAL as u64)?;
    from.rewind().ok()?;
    let mut hashed = Sealing { out: std::io::sink(), hash: Sha256::new() };
    std::io::copy(&mut from.by_ref().take(length), &mut hashed).ok()?;
    let mut seal = [0; SEAL];
    from.read_exact(&mut seal).ok()?;
    if hashed.hash.finalize()[..] != seal {
        return None;
    }
    from.rewind().ok()?;
    let mut room = vec![0; LONGEST_TEXT];
    postcard::from_io((BufReader::new(from.take(length)), &mut room)).ok().map(|(value, _)| value)
}

/// Hashes what it writes.
struct Sealing<W> {
    out: W,
    hash: Sha256,
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    #[test]
    fn what_was_written_is_read_and_what_was_changed_is_not() {
        let value = (vec![1.5f32, -2.0], "a name".to_owned(), Some(7u64));
        let mut bytes = Vec::new();
        write_sealed(&value, &mut bytes).unwrap();
        let read = |bytes: &[u8]| read_sealed::<(Vec<f32>, String, Option<u64>)>(Cursor::new(bytes));
        assert_eq!(read(&bytes), Some(value));
        for at in 0..bytes.len() {
            let mut other = bytes.clone();
            other[at] ^= 1;
            assert_eq!(read(&other), None, "byte {at}");
        }
        assert_eq!(read(&bytes[..bytes.len() - 1]), None);
        assert_eq!(read(&[]), None);
    }
}
