use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// The registered algorithms (image spec, "Registered algorithms").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The length of the hash in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// A content digest, `sha256:<64 lower-case hex>` or `sha512:<128>` (image spec, "Digests").
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    /// The hash, then zeros.
    bytes: [u8; 64],
}

/// Why a text is not a digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("a digest is `<algorithm>:<lower-case hex>`, such as `sha256:` and 64 digits")]
    Grammar,
    #[error("the digest's algorithm is none of the registered sha256 and sha512")]
    Algorithm,
}

impl Digest {
    /// The digest of these bytes.
    pub fn of(algorithm: Algorithm, content: &[u8]) -> Self {
        let mut bytes = [0; 64];
        match algorithm {
            Algorithm::Sha256 => bytes[..32].copy_from_slice(&sha2::Sha256::digest(content)),
            Algorithm::Sha512 => bytes.copy_from_slice(&sha2::Sha512::digest(content)),
        }
        Self { algorithm, bytes }
    }

    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let (algorithm, hex) = text.split_once(':').ok_or(DigestError::Grammar)?;
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|a| a.as_str() == algorithm)
            .ok_or(DigestError::Algorithm)?;
        if hex.len() != algorithm.size() * 2 {
            return Err(DigestError::Grammar);
        }
        let mut bytes = [0; 64];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        Ok(Self { algorithm, bytes })
    }

    /// A digest from its hash; `None` when the length is not the algorithm's.
    pub fn from_hash(algorithm: Algorithm, hash: &[u8]) -> Option<Self> {
        let mut bytes = [0; 64];
        (hash.len() == algorithm.size()).then(|| {
            bytes[..hash.len()].copy_from_slice(hash);
            Self { algorithm, bytes }
        })
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The raw hash.
    pub fn hash(&self) -> &[u8] {
        &self.bytes[..self.algorithm.size()]
    }

    /// Whether this is the digest of `content`.
    pub fn matches(&self, content: &[u8]) -> bool {
        *self == Self::of(self.algorithm, content)
    }
}

/// Upper-case hex is refused: a registry would take it for another digest, or for a tag.
fn nibble(digit: u8) -> Result<u8, DigestError> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(DigestError::Grammar),
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Each pull has some; formatting byte by byte takes thirty times as long.
        const DIGITS: [u8; 16] = *b"0123456789abcdef";
        let mut hex = [0; 128];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.hash()) {
            pair[0] = DIGITS[usize::from(byte >> 4)];
            pair[1] = DIGITS[usize::from(byte & 15)];
        }
        let hex = &hex[..self.hash().len() * 2];
        f.write_str(self.algorithm.as_str())?;
        f.write_str(":")?;
        f.write_str(std::str::from_utf8(hex).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4 gives both for the empty message.
    const EMPTY_256: &str =
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const EMPTY_512: &str = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";

    #[test]
    fn known_digests_come_out_and_go_in() {
        for (algorithm, text) in [(Algorithm::Sha256, EMPTY_256), (Algorithm::Sha512, EMPTY_512)] {
            let digest = Digest::of(algorithm, b"");
            assert_eq!(digest.to_string(), text);
            assert_eq!(Digest::parse(text), Ok(digest));
            assert_eq!(Digest::from_hash(algorithm, digest.hash()), Some(digest));
            assert!(digest.matches(b""));
            assert!(!digest.matches(b"x"));
        }
        assert_eq!(Digest::from_hash(Algorithm::Sha256, &[0; 31]), None);
    }

    #[test]
    fn anything_else_is_refused() {
        let hex = &EMPTY_256["sha256:".len()..];
        for text in [
            "".to_owned(),
            "sha256".to_owned(),
            "sha256:".to_owned(),
            format!("sha256:{}", hex.to_uppercase()),
            format!("sha256:{}", &hex[1..]),
            format!("sha256:{hex}0"),
            format!("sha512:{hex}"),
            format!("sha256:{}g", &hex[1..]),
        ] {
            assert_eq!(Digest::parse(&text), Err(DigestError::Grammar), "{text:?}");
        }
        for text in [format!("SHA256:{hex}"), format!("md5:{hex}"), format!(":{hex}")] {
            assert_eq!(Digest::parse(&text), Err(DigestError::Algorithm), "{text:?}");
        }
    }
}
