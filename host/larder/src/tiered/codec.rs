//! How values become bytes for tiers and journals that keep bytes, and become values again.

use std::fmt;

use bytes::Bytes;

/// Any error, as it crosses threads.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

type Encode<V> = dyn Fn(&V) -> Result<Vec<u8>, BoxError> + Send + Sync;
type Decode<V> = dyn Fn(&[u8]) -> Result<V, BoxError> + Send + Sync;
type Become<V> = dyn Fn(Bytes) -> Result<V, BoxError> + Send + Sync;

/// How values become bytes, and become values again.
///
/// ```
/// use larder::tiered::Codec;
///
/// let codec = Codec::new(|n: &u32| n.to_be_bytes().to_vec(), |bytes| bytes.try_into().map(u32::from_be_bytes));
/// assert_eq!(codec.decode(&codec.encode(&7).unwrap()).unwrap(), 7);
/// assert!(codec.decode(b"no number").is_err());
/// ```
///
/// With features: `Codec::json` (readable everywhere; the choice where others share the tier), `Codec::postcard` (a third of
/// the size, for Rust alone), and `Codec::compress_above`. A change of what a type is written as makes old copies unreadable
/// or, worse, wrong: give the keyspace another name then.
pub struct Codec<V> {
    encode: Box<Encode<V>>,
    decode: Box<Decode<V>>,
    /// How bytes that nobody else has become a value without a copy, where they can.
    becomes: Option<Box<Become<V>>>,
}

impl<V> fmt::Debug for Codec<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Codec").finish_non_exhaustive()
    }
}

impl<V: 'static> Codec<V> {
    /// One of your own. Bytes that cannot be decoded count as absent.
    pub fn new<E: Into<BoxError>>(
        encode: impl Fn(&V) -> Vec<u8> + Send + Sync + 'static,
        decode: impl Fn(&[u8]) -> Result<V, E> + Send + Sync + 'static,
    ) -> Self {
        Codec::try_new(move |value| Ok::<_, BoxError>(encode(value)), decode)
    }

    /// One for values of which some cannot be encoded: those are not kept in far tiers.
    pub fn try_new<A: Into<BoxError>, B: Into<BoxError>>(
        encode: impl Fn(&V) -> Result<Vec<u8>, A> + Send + Sync + 'static,
        decode: impl Fn(&[u8]) -> Result<V, B> + Send + Sync + 'static,
    ) -> Self {
        Codec {
            encode: Box::new(move |value| encode(value).map_err(Into::into)),
            decode: Box::new(move |bytes| decode(bytes).map_err(Into::into)),
            becomes: None,
        }
    }

    /// For values that are bytes or text already.
    pub fn raw() -> Self
    where
        V: AsRef<[u8]> + TryFrom<Vec<u8>, Error: Into<BoxError>>,
    {
        let codec = Codec::new(|value: &V| value.as_ref().to_vec(), |bytes| V::try_from(bytes.to_vec()));
        Codec { becomes: Some(Box::new(|bytes| V::try_from(bytes.into()).map_err(Into::into))), ..codec }
    }

    /// JSON, by serde.
    #[cfg(feature = "json")]
    pub fn json() -> Self
    where
        V: serde::Serialize + serde::de::DeserializeOwned,
    {
        Codec::try_new(|value: &V| serde_json::to_vec(value), |bytes| serde_json::from_slice(bytes))
    }

    /// [postcard](https://postcard.jamesmunns.com), by serde: compact, and without names, so both sides need the same type.
    #[cfg(feature = "postcard")]
    pub fn postcard() -> Self
    where
        V: serde::Serialize + serde::de::DeserializeOwned,
    {
        Codec::try_new(|value: &V| postcard::to_allocvec(value), |bytes| postcard::from_bytes(bytes))
    }

    /// Compresses what is larger than so many bytes once encoded, where that makes it smaller. A byte stands before all
    /// values then: 0, and the value as it is; or 1, four bytes (little-endian) with its length, and an LZ4 block. So
    /// compression cannot be turned on for what is in shared tiers already: such copies count as absent.
    #[cfg(feature = "compress")]
    #[must_use]
    pub fn compress_above(self, bytes: usize) -> Self {
        let Codec { encode, decode, .. } = self;
        let encode = move |value: &V| -> Result<Vec<u8>, BoxError> {
            let plain = encode(value)?;
            if plain.len() > bytes {
                let packed = lz4_flex::block::compress_prepend_size(&plain);
                if packed.len() < plain.len() {
                    return Ok([&[PACKED], &packed[..]].concat());
                }
            }
            Ok([&[PLAIN], &plain[..]].concat())
        };
        let decode = move |bytes: &[u8]| -> Result<V, BoxError> {
            match bytes.split_first() {
                Some((&PLAIN, plain)) => decode(plain),
                Some((&PACKED, packed)) => {
                    let size = packed.first_chunk().map(|size| u32::from_le_bytes(*size) as usize);
                    // LZ4 makes nothing more than 255 times as small; what says so is damaged, and asks for memory.
                    if size.is_none_or(|size| size > packed.len().saturating_mul(255)) {
                        return Err(BadPacking.into());
                    }
                    decode(&lz4_flex::block::decompress_size_prepended(packed)?)
                }
                _ => Err(BadPacking.into()),
            }
        };
        Codec::try_new(encode, decode)
    }
}

#[cfg(feature = "compress")]
const PLAIN: u8 = 0;
#[cfg(feature = "compress")]
const PACKED: u8 = 1;

#[cfg(feature = "compress")]
#[derive(Debug, thiserror::Error)]
#[error("what says whether it is compressed makes no sense: it was written without compression, or is damaged")]
struct BadPacking;

impl<V> Codec<V> {
    /// The bytes of a value.
    ///
    /// # Errors
    /// It has none.
    pub fn encode(&self, value: &V) -> Result<Vec<u8>, BoxError> {
        (self.encode)(value)
    }

    /// The value of bytes.
    ///
    /// # Errors
    /// They are none of a value.
    pub fn decode(&self, bytes: &[u8]) -> Result<V, BoxError> {
        (self.decode)(bytes)
    }

    /// As [`Self::decode`], of bytes that may become the value.
    pub(crate) fn decode_owned(&self, bytes: Bytes) -> Result<V, BoxError> {
        match &self.becomes {
            Some(becomes) => becomes(bytes),
            None => self.decode(&bytes),
        }
    }
}

#[cfg(all(test, feature = "json", feature = "postcard", feature = "compress"))]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Product {
        name: String,
        cents: u64,
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        let product = Product { name: "pear ".repeat(1_000), cents: 199 };
        for codec in [
            Codec::json(),
            Codec::postcard(),
            Codec::json().compress_above(0),
            Codec::postcard().compress_above(100),
            Codec::json().compress_above(1 << 20),
        ] {
            assert_eq!(codec.decode(&codec.encode(&product).unwrap()).unwrap(), product);
            assert!(codec.decode(b"").is_err() && codec.decode(&[0xff; 3]).is_err());
        }
        let (plain, packed) =
            (Codec::json().encode(&product).unwrap(), Codec::json().compress_above(100).encode(&product));
        assert!(packed.unwrap().len() * 10 < plain.len());
        let plain = Codec::<Vec<u8>>::raw();
        for (whole, from) in [("", 0), ("pear", 0), ("a header pear", 9)] {
            let bytes = Bytes::from(whole.to_string()).slice(from..);
            assert_eq!(plain.decode_owned(bytes).unwrap(), whole.as_bytes()[from..]);
        }
        assert!(Codec::<String>::raw().decode_owned(Bytes::from_static(&[0xff])).is_err());
        assert_eq!(Codec::<u32>::json().decode_owned(Bytes::from_static(b"7")).unwrap(), 7);
        let text = Codec::<String>::raw();
        assert_eq!(text.decode(&text.encode(&"é".into()).unwrap()).unwrap(), "é");
        assert!(text.decode(&[0xff]).is_err());
    }

    #[test]
    fn damaged_bytes_ask_for_no_more_memory_than_there_is_reason_for() {
        let codec = Codec::<String>::json().compress_above(0);
        let mut packed = codec.encode(&"a".repeat(10_000)).unwrap();
        assert_eq!(packed[0], PACKED);
        packed[1..5].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(codec.decode(&packed).is_err());
        let good = codec.encode(&"ab".repeat(5_000)).unwrap();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                // It may decode to something else, whoever keeps it checks that; it does not panic.
                drop(codec.decode(&bad));
            }
        }
    }
}
