//! Certificates and keys from PEM files.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// A certificate chain and the key of its first certificate.
pub struct KeyPair {
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// For a TLS server.
    certified: Arc<CertifiedKey>,
    /// The chain, DER.
    pub chain: Vec<Vec<u8>>,
    key_der: Vec<u8>,
}

impl KeyPair {
    /// Reads both files and checks that they go together.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, String> {
        let named = |path: &Path, e: &dyn fmt::Display| format!("`{}`: {e}", path.display());
        let chain = certificates(certificate)?;
        let key_der = PrivateKeyDer::from_pem_file(key).map_err(|e| named(key, &e))?;
        let certified = CertifiedKey::from_der(
            chain.iter().map(|der| CertificateDer::from(der.clone())).collect(),
            key_der.clone_key(),
            &ring::default_provider(),
        );
        let certified = certified
            .map_err(|e| format!("`{}` and `{}`: {e}", certificate.display(), key.display()))?;
        Ok(Self {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
            certified: Arc::new(certified),
            chain,
            key_der: key_der.secret_der().to_vec(),
        })
    }

    pub fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }

    /// The private key, DER.
    pub fn expose_key(&self) -> &[u8] {
        &self.key_der
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { certificate, key, .. } = self;
        f.debug_struct("KeyPair").field("certificate", certificate).field("key", key).finish()
    }
}

/// Certificates of authorities, DER.
pub struct Authorities {
    pub file: PathBuf,
    pub list: Vec<Vec<u8>>,
}

impl Authorities {
    /// All certificates of a file; at least one.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn load(file: &Path) -> Result<Self, String> {
        Ok(Self { file: file.to_owned(), list: certificates(file)? })
    }
}

impl fmt::Debug for Authorities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorities").field("file", &self.file).finish_non_exhaustive()
    }
}

fn certificates(path: &Path) -> Result<Vec<Vec<u8>>, String> {
    let named = |e: &dyn fmt::Display| format!("`{}`: {e}", path.display());
    let found = CertificateDer::pem_file_iter(path).map_err(|e| named(&e))?;
    let mut list = Vec::new();
    for der in found {
        let der = der.map_err(|e| named(&e))?;
        // PEM says nothing of what it holds.
        rustls::server::ParsedCertificate::try_from(&der).map_err(|e| named(&e))?;
        list.push(der.to_vec());
    }
    if list.is_empty() { Err(named(&"no certificate in it")) } else { Ok(list) }
}
