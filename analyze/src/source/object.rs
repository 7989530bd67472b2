//! Captures in object stores: S3, GCS, Azure, and HTTP servers that serve ranges.
//!
//! Credentials and endpoints come from the environment, under the names that the stores' own tools
//! use (`AWS_…`, `GOOGLE_…`, `AZURE_…`).

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, Once, PoisonError};

use futures_util::{TryStream, TryStreamExt};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt as _, ObjectStoreScheme,
    parse_url_opts,
};
use tokio::runtime::{Handle, Runtime};
use url::{Position, Url};

use super::ranged::{RangedFile, Ranges};
use crate::bytes::to_u64;

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
        if url.query().is_some() || url.fragment().is_some() || url.password().is_some() {
            return Err(say(
                &"addresses with a query, a fragment or a password are not taken; give credentials by the environment, and write a ? in a name as %3F, a # as %23",
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
        // A variable that is no text is not one of them, and `vars` would panic on it.
        let set = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| VARIABLES.iter().any(|v| name.starts_with(v)));
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
            facts: facts.clone(),
            handle: self.runtime.handle().clone(),
        })))
    }

    /// The captures below an address that ends with a slash.
    ///
    /// # Errors
    /// A sentence that names it, also when there are more than `most`.
    pub fn list(&self, address: &str, most: usize) -> Result<Vec<String>, String> {
        let (store, path) = self.store(address)?;
        let folder = Url::parse(address).map_err(|e| format!("{address}: {e}"))?;
        let names = store.list(Some(&path)).map_ok(|meta| meta.location);
        let found = self
            .runtime
            .block_on(captures(names, &folder, &path, most))
            .map_err(|why| format!("{address}: {why}"))?;
        Ok(found)
    }
}

/// The addresses of the captures in a list, of which no more is held than these.
async fn captures<E: std::fmt::Display>(
    mut names: impl TryStream<Ok = Path, Error = E> + Unpin,
    folder: &Url,
    prefix: &Path,
    most: usize,
) -> Result<Vec<String>, String> {
    let mut found = Vec::new();
    loop {
        let name = match names.try_next().await {
            Ok(Some(name)) => name,
            Ok(None) => return Ok(found),
            Err(e) => return Err(format!("it cannot be listed: {e}")),
        };
        if !name.as_ref().ends_with(".core.zst") {
            continue;
        }
        if found.len() >= most {
            return Err(format!(
                "more than {most} captures are below it; use several runs, each with a folder of its own"
            ));
        }
        let address = address_of(folder, &name, prefix);
        found.push(address.ok_or_else(|| format!("{name}: this name in it has no address"))?);
    }
}

/// The address of an object below a folder, such that [`Stores::store`] finds the same name in it.
fn address_of(folder: &Url, name: &Path, prefix: &Path) -> Option<String> {
    let parts: Vec<String> = name
        .prefix_match(prefix)?
        .map(|part| part.as_ref().to_owned())
        .collect();
    let mut address = folder.clone();
    // This encodes what else would be taken for something in an address.
    address
        .path_segments_mut()
        .ok()?
        .pop_if_empty()
        .extend(parts);
    Some(address.into())
}

impl Facts {
    /// Whether the store says when it was changed. Where it does not, the library puts 1970.
    fn is_dated(&self) -> bool {
        !self.changed.starts_with("1970-01-01T00:00:00")
    }

    /// Refuses an answer of another object than the one that was looked at first.
    fn are_of(&self, now: &Self) -> Result<(), String> {
        let replaced = |what: &str, was: &str, now: &str| {
            Err(format!(
                "it was replaced while it was read: its {what} was {was} and is {now}"
            ))
        };
        if self.bytes != now.bytes {
            let (was, now) = (self.bytes.to_string(), now.bytes.to_string());
            return replaced("length", &was, &now);
        }
        if let (Some(was), Some(now)) = (&self.etag, &now.etag)
            && was != now
        {
            return replaced("entity tag", was, now);
        }
        if self.is_dated() && now.is_dated() && self.changed != now.changed {
            return replaced("time", &self.changed, &now.changed);
        }
        Ok(())
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
    facts: Facts,
    handle: Handle,
}

impl Object {
    fn wait<T>(&self, future: impl Future<Output = object_store::Result<T>>) -> io::Result<T> {
        self.handle.block_on(future).map_err(io::Error::other)
    }
}

impl Ranges for Object {
    fn bytes(&self) -> u64 {
        self.facts.bytes
    }

    fn read(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let end = offset.saturating_add(to_u64(len));
        let options = GetOptions {
            // A capture that is replaced meanwhile would be read half from one and half from the
            // other. Not every store answers to these, so what it answers is looked at as well.
            if_match: self
                .facts
                .etag
                .clone()
                .filter(|etag| !etag.starts_with("W/")),
            if_unmodified_since: self
                .facts
                .changed
                .parse()
                .ok()
                .filter(|_| self.facts.is_dated()),
            range: Some(GetRange::Bounded(offset..end)),
            ..GetOptions::default()
        };
        let answer = self.wait(self.store.get_opts(&self.path, options))?;
        self.facts
            .are_of(&facts(answer.meta.clone()))
            .map_err(io::Error::other)?;
        self.wait(up_to(answer.into_stream(), len))
    }
}

/// What comes until it is more than `len` bytes, which whoever asked takes for an error: a body
/// without end is not read to its end.
async fn up_to<B: AsRef<[u8]>, E>(
    mut body: impl TryStream<Ok = B, Error = E> + Unpin,
    len: usize,
) -> Result<Vec<u8>, E> {
    let mut bytes = Vec::new();
    while let Some(part) = body.try_next().await? {
        let part = part.as_ref();
        let room = len.saturating_add(1).saturating_sub(bytes.len());
        bytes.extend_from_slice(part.get(..room).unwrap_or(part));
        if bytes.len() > len {
            break;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::stream;

    use super::*;

    #[test]
    fn an_address_of_a_list_is_that_of_the_object() {
        let stores = Stores::new().unwrap();
        for (folder, prefix) in [
            ("s3://bucket/captures/", "captures"),
            ("s3://bucket", ""),
            ("s3://bucket/a%20b/", "a b"),
            ("http://localhost/captures/", "captures"),
        ] {
            let prefix = Path::parse(prefix).unwrap();
            for name in [
                "run#3.core.zst",
                "a?b/x.core.zst",
                "a%20b.core.zst",
                "a b & c=d+e.core.zst",
                " \u{e4}\\:@[]{}~.core.zst ",
            ] {
                let whole = Path::parse(format!("{prefix}/{name}")).unwrap();
                let folder = Url::parse(folder).unwrap();
                let address = address_of(&folder, &whole, &prefix).unwrap();
                let url = Url::parse(&address).unwrap();
                let (_, found) = ObjectStoreScheme::parse(&url).unwrap();
                assert_eq!(found, whole, "{address}");
            }
        }
        let folder = Url::parse("s3://bucket/x/").unwrap();
        let name = Path::parse("x/day=1/stall-7.3.core.zst").unwrap();
        let address = address_of(&folder, &name, &Path::parse("x").unwrap()).unwrap();
        assert_eq!(address, "s3://bucket/x/day=1/stall-7.3.core.zst");
        let refused = stores.facts("s3://bucket/run#3.core.zst").unwrap_err();
        assert!(
            refused.contains("write a ? in a name as %3F, a # as %23"),
            "{refused}"
        );
    }

    #[test]
    fn a_list_is_read_no_further_than_it_is_wanted() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let folder = Url::parse("s3://bucket/x/").unwrap();
        let prefix = Path::parse("x").unwrap();
        let of = |names: Vec<Result<&str, &'static str>>, most| {
            let came = Cell::new(0);
            let names = names.into_iter().map(|name| {
                came.set(came.get() + 1);
                name.map(|name| Path::parse(name).unwrap())
            });
            let found = captures(stream::iter(names), &folder, &prefix, most);
            (runtime.block_on(found), came.get())
        };
        let names = ["x/a.core.zst", "x/notes", "x/b.core.zst", "x/c.core.zst"];
        let all = || names.map(Ok).to_vec();
        let addresses = ["a", "b", "c"].map(|name| format!("s3://bucket/x/{name}.core.zst"));
        assert_eq!(of(all(), 3), (Ok(addresses.to_vec()), 4));
        let (found, came) = of([all(), all()].concat(), 2);
        assert!(found.unwrap_err().starts_with("more than 2 captures"));
        assert_eq!(came, 4);
        let (found, _) = of(vec![Ok("y/a.core.zst")], 3);
        let said = "y/a.core.zst: this name in it has no address";
        assert_eq!(found.unwrap_err(), said);
        let (found, _) = of(vec![Ok(names[0]), Err("x//y is odd")], 3);
        assert_eq!(found.unwrap_err(), "it cannot be listed: x//y is odd");
    }

    #[test]
    fn an_object_that_was_replaced_is_noticed() {
        type Change = fn(&mut Facts);
        let first = Facts {
            bytes: 7,
            changed: "2026-01-02T03:04:05+00:00".to_owned(),
            etag: Some("W/\"a\"".to_owned()),
        };
        let of = |change: Change| {
            let mut now = first.clone();
            change(&mut now);
            first.are_of(&now)
        };
        assert_eq!(of(|_| ()), Ok(()));
        // What an answer does not say is no difference.
        let undated = |facts: &mut Facts| facts.changed = "1970-01-01T00:00:00+00:00".to_owned();
        assert_eq!(of(undated), Ok(()));
        assert_eq!(of(|now| now.etag = None), Ok(()));
        let changes: [(Change, &str); 3] = [
            (|now| now.bytes = 8, "its length was 7 and is 8"),
            (
                |now| now.etag = Some("W/\"b\"".to_owned()),
                "its entity tag was W/\"a\" and is W/\"b\"",
            ),
            (
                |now| now.changed.replace_range(..4, "2027"),
                "its time was 2026-01-02T03:04:05+00:00 and is 2027-",
            ),
        ];
        for (change, what) in changes {
            let why = of(change).unwrap_err();
            assert!(why.contains(what), "{why}");
        }
        let date: Option<ObjectMeta> = first.changed.parse().ok().map(|last_modified| ObjectMeta {
            location: Path::default(),
            last_modified,
            size: 7,
            e_tag: first.etag.clone(),
            version: None,
        });
        assert_eq!(facts(date.unwrap()), first);
    }

    #[test]
    fn no_more_of_a_body_is_read_than_shows_that_it_is_too_long() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let came = Cell::new(0);
        let endless = || {
            came.set(0);
            stream::iter(std::iter::repeat_with(|| {
                came.set(came.get() + 1);
                Ok::<_, ()>([7_u8; 100])
            }))
        };
        let read = runtime.block_on(up_to(endless(), 250)).unwrap();
        assert_eq!((read.len(), came.get()), (251, 3));
        let read = runtime.block_on(up_to(endless(), 300)).unwrap();
        assert_eq!((read.len(), came.get()), (301, 4));
        let short = stream::iter([Ok::<_, ()>("ab"), Ok("c")]);
        assert_eq!(runtime.block_on(up_to(short, 3)).unwrap(), b"abc");
        let cut = stream::iter([Ok("ab"), Err("the line is cut")]);
        assert_eq!(runtime.block_on(up_to(cut, 3)), Err("the line is cut"));
    }
}
