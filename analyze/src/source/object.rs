//! Captures in object stores: S3, GCS, Azure, and HTTP servers that serve ranges.
//!
//! Credentials and endpoints come from the environment, under the names that the stores' own tools
//! use (`AWS_…`, `GOOGLE_…`, `AZURE_…`).

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, Once, PoisonError};

use futures_util::TryStreamExt;
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, ObjectStoreScheme,
    parse_url_opts,
};
use tokio::runtime::{Handle, Runtime};
use url::{Position, Url};

use super::ranged::{RangedFile, Ranges};
use crate::bytes::{to_u64, to_usize};

/// Threads that wait for answers; the work with them is done by whoever asks.
const THREADS: usize = 2;
/// Beginnings of the names of variables that stores are configured by.
const VARIABLES: [&str; 4] = ["AWS_", "GOOGLE_", "AZURE_", "HTTP_CLIENT_"];

/// What a store says of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its length.
    pub bytes: u64,
    /// When it was changed last.
    pub changed: String,
    /// Its entity tag.
    pub etag: Option<String>,
}

/// Connections to stores.
pub struct Stores {
    runtime: Runtime,
    open: Mutex<HashMap<String, Arc<dyn ObjectStore>>>,
}

impl std::fmt::Debug for Stores {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stores").finish_non_exhaustive()
    }
}

impl Stores {
    /// None yet.
    ///
    /// # Errors
    /// When no threads can be had.
    pub fn new() -> io::Result<Self> {
        static PROVIDER: Once = Once::new();
        PROVIDER.call_once(|| {
            // It fails only when there is one already, which does as well.
            let _ = rustls::crypto::ring::default_provider().install_default();
        });
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("stores")
            .enable_all()
            .build()?;
        Ok(Self {
            runtime,
            open: Mutex::default(),
        })
    }

    /// The store of an address, and the object's path in it.
    fn store(&self, address: &str) -> Result<(Arc<dyn ObjectStore>, Path), String> {
        let say = |why: &dyn std::fmt::Display| format!("{address}: {why}");
        let url = Url::parse(address).map_err(|e| say(&e))?;
        if url.query().is_some() || url.password().is_some() {
            return Err(say(
                &"addresses with a query or a password are not taken; give credentials by the environment",
            ));
        }
        let (scheme, path) = ObjectStoreScheme::parse(&url).map_err(|e| say(&e))?;
        let over_http = matches!(url.scheme(), "http" | "https");
        if matches!(scheme, ObjectStoreScheme::Local | ObjectStoreScheme::Memory) {
            return Err(say(
                &"expected s3://, gs://, az://, http:// or https://; a file has its plain name",
            ));
        }
        // In an address of a bucket by its host, the path may begin with the bucket.
        let key = match scheme {
            ObjectStoreScheme::Http => Some(&url[..Position::BeforePath]),
            _ if !over_http => Some(&url[..Position::BeforePath]),
            _ => None,
        };
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(store) = key.and_then(|key| open.get(key)) {
            return Ok((store.clone(), path));
        }
        let set =
            std::env::vars().filter(|(name, _)| VARIABLES.iter().any(|v| name.starts_with(v)));
        let plain = (url.scheme() == "http").then(|| ("allow_http".to_owned(), "true".to_owned()));
        let (store, path) = parse_url_opts(&url, set.chain(plain)).map_err(|e| say(&e))?;
        let store: Arc<dyn ObjectStore> = store.into();
        if let Some(key) = key {
            open.insert(key.to_owned(), store.clone());
        }
        Ok((store, path))
    }

    /// What a store says of an object.
    ///
    /// # Errors
    /// A sentence that names it.
    pub fn facts(&self, address: &str) -> Result<Facts, String> {
        let (store, path) = self.store(address)?;
        let meta = self.runtime.block_on(store.head(&path));
        let meta = meta.map_err(|e| format!("{address}: {e}"))?;
        Ok(facts(meta))
    }

    /// An object, to be read by ranges: as the facts have it, or not at all.
    ///
    /// # Errors
    /// A sentence that names it.
    pub fn file(&self, address: &str, facts: &Facts) -> Result<RangedFile, String> {
        let (store, path) = self.store(address)?;
        Ok(RangedFile::new(Box::new(Object {
            store,
            path,
            bytes: facts.bytes,
            etag: facts.etag.clone(),
            handle: self.runtime.handle().clone(),
        })))
    }

    /// The captures below an address that ends with a slash.
    ///
    /// # Errors
    /// A sentence that names it.
    pub fn list(&self, address: &str) -> Result<Vec<String>, String> {
        let (store, path) = self.store(address)?;
        let all = self
            .runtime
            .block_on(store.list(Some(&path)).try_collect::<Vec<_>>());
        let all = all.map_err(|e| format!("{address}: it cannot be listed: {e}"))?;
        let names = all.into_iter().map(|meta| meta.location);
        let captures = names.filter(|name| name.as_ref().ends_with(".core.zst"));
        let below = captures.filter_map(|name| {
            let parts = name.prefix_match(&path)?;
            let parts: Vec<String> = parts.map(|part| part.as_ref().to_owned()).collect();
            Some(format!(
                "{}/{}",
                address.trim_end_matches('/'),
                parts.join("/")
            ))
        });
        Ok(below.collect())
    }
}

fn facts(meta: ObjectMeta) -> Facts {
    Facts {
        bytes: meta.size,
        changed: meta.last_modified.to_rfc3339(),
        etag: meta.e_tag,
    }
}

/// One object.
struct Object {
    store: Arc<dyn ObjectStore>,
    path: Path,
    bytes: u64,
    etag: Option<String>,
    handle: Handle,
}

impl Object {
    fn wait<T>(&self, future: impl Future<Output = object_store::Result<T>>) -> io::Result<T> {
        self.handle.block_on(future).map_err(io::Error::other)
    }
}

impl Ranges for Object {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let end = offset.saturating_add(to_u64(len));
        let options = GetOptions {
            // A capture that is replaced meanwhile would be read half from one and half from the other.
            if_match: self.etag.clone().filter(|etag| !etag.starts_with("W/")),
            range: Some(GetRange::Bounded(offset..end)),
            ..GetOptions::default()
        };
        let bytes = self.wait(async {
            let answer = self.store.get_opts(&self.path, options).await?;
            answer.bytes().await
        })?;
        debug_assert!(to_usize(self.bytes) >= bytes.len());
        Ok(bytes.to_vec())
    }
}
