//! The kernel's containers: `list_head`, `hlist`, `hlist_nulls`, `llist`, `rb_root`, `idr` /
//! `xarray`, `rhashtable`, `maple_tree`.
//!
//! Each walk is bounded, notices cycles, and keeps what it found when it has to stop: a torn
//! list shortens a report, it never ends it. Node addresses are returned; `container_of` is the
//! caller's ([`Kernel::entry`]).

use std::collections::HashSet;

use super::Kernel;
use crate::addr::Kva;
use crate::error::{Error, Result};
use crate::object::Object;

/// Deepest red-black tree: twice the logarithm of more nodes than memory holds.
const MAX_RB_DEPTH: usize = 128;
/// Levels of an xarray of 64-bit indices with 6 bits each.
const MAX_XA_DEPTH: usize = 11;
/// Buckets of a hash table that a walk visits (`MAX_RHT_BUCKETS`).
const MAX_BUCKETS: u64 = 1 << 16;
/// Nodes of an xarray that a walk enters.
const MAX_XA_NODES: usize = 1 << 16;
/// Nodes of a maple tree that a walk enters: each has 10 slots or more.
const MAX_MAPLE_NODES: usize = 1 << 16;

/// How a walk ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WalkEnd {
    /// At the container's own end.
    Complete,
    /// A node came up twice.
    Cycle(Kva),
    /// The caller's limit was reached; there is more.
    Limit(usize),
    /// A node could not be read.
    Broken(Kva, Error),
}

impl WalkEnd {
    /// What to tell the reader, `None` when all is well.
    #[must_use]
    pub fn anomaly(&self) -> Option<String> {
        match self {
            Self::Complete => None,
            Self::Cycle(at) => Some(format!("the list comes back to {at} and was cut there")),
            Self::Limit(limit) => Some(format!("more than {limit} entries, the rest is not shown")),
            Self::Broken(at, error) => Some(format!("the walk stopped at {at}: {error}")),
        }
    }

    /// Whether entries may be missing.
    #[must_use]
    pub const fn is_cut(&self) -> bool {
        !matches!(self, Self::Complete)
    }
}

/// What a walk found, in the container's order, and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walk<T> {
    /// The entries.
    pub items: Vec<T>,
    /// How it ended.
    pub end: WalkEnd,
}

impl<T> Walk<T> {
    /// The same walk with every item converted.
    pub fn map<U>(self, convert: impl FnMut(T) -> U) -> Walk<U> {
        Walk {
            items: self.items.into_iter().map(convert).collect(),
            end: self.end,
        }
    }

    /// Nothing, completely.
    #[must_use]
    pub const fn empty() -> Self {
        Self {
            items: Vec::new(),
            end: WalkEnd::Complete,
        }
    }

    fn done(items: Vec<T>) -> Self {
        Self {
            items,
            end: WalkEnd::Complete,
        }
    }
}

/// The state of one walk over an xarray. A node has 64 slots (`XA_CHUNK_SIZE`).
struct XaWalk {
    slots: u64,
    shift: u64,
    limit: usize,
    entered: HashSet<Kva>,
    items: Vec<(u64, Kva)>,
    problem: Option<WalkEnd>,
}

/// A kind of maple node: where its pivots and slots are, and how many slots it has.
struct MapleNode {
    pivots: u64,
    slots: u64,
    count: u64,
}

impl Kernel {
    /// The object of type `ty` whose member `path` is at `node` (`container_of`).
    ///
    /// # Errors
    /// [`Error::NoType`] or [`Error::NoMember`].
    pub fn entry(&self, ty: &str, path: &'static str, node: Kva) -> Result<Object<'_>> {
        let id = self.btf.find(ty)?;
        let offset = self.field(id, path)?.offset;
        Ok(Object::new(self, id, node.sub(offset)))
    }

    /// Follows `next` pointers from `first` until `is_end`. The shape of all linked lists.
    fn chain(
        &self,
        first: Result<Kva>,
        at: Kva,
        limit: usize,
        is_end: impl Fn(Kva) -> bool,
    ) -> Walk<Kva> {
        let mut items = Vec::new();
        let mut seen = HashSet::new();
        let mut next = first;
        let mut from = at;
        let end = loop {
            let node = match next {
                Ok(node) => node,
                Err(error) => break WalkEnd::Broken(from, error),
            };
            if is_end(node) {
                break WalkEnd::Complete;
            }
            if node.is_null() {
                break WalkEnd::Broken(from, Error::Null("the next pointer".into()));
            }
            if !seen.insert(node) {
                break WalkEnd::Cycle(node);
            }
            if items.len() >= limit {
                break WalkEnd::Limit(limit);
            }
            items.push(node);
            from = node;
            next = self.read_ptr(node);
        };
        Walk { items, end }
    }

    /// The nodes of a `struct list_head` ring, without the head.
    #[must_use]
    pub fn list(&self, head: Kva, limit: usize) -> Walk<Kva> {
        self.chain(self.read_ptr(head), head, limit, |node| node == head)
    }

    /// The nodes behind a `struct hlist_head` or `struct llist_head`: null-terminated.
    #[must_use]
    pub fn hlist(&self, head: Kva, limit: usize) -> Walk<Kva> {
        self.chain(self.read_ptr(head), head, limit, Kva::is_null)
    }

    /// The nodes behind a `struct hlist_nulls_head`: the end is an odd value, not null. A null
    /// head is a bucket that was never used.
    #[must_use]
    pub fn hlist_nulls(&self, head: Kva, limit: usize) -> Walk<Kva> {
        self.chain(self.read_ptr(head), head, limit, |node| {
            node.0 & 1 == 1 || node.is_null()
        })
    }

    /// The nodes of the red-black tree whose `struct rb_root` is at `root`, in order.
    #[must_use]
    pub fn rbtree(&self, root: Kva, limit: usize) -> Walk<Kva> {
        // struct rb_node { __rb_parent_color, rb_right, rb_left }; struct rb_root { rb_node }.
        let mut items = Vec::new();
        let mut seen = HashSet::new();
        let mut stack: Vec<Kva> = Vec::new();
        let mut next = match self.read_ptr(root) {
            Ok(node) => node,
            Err(error) => {
                return Walk {
                    items,
                    end: WalkEnd::Broken(root, error),
                };
            }
        };
        loop {
            while !next.is_null() {
                if !seen.insert(next) || stack.len() >= MAX_RB_DEPTH {
                    return Walk {
                        items,
                        end: WalkEnd::Cycle(next),
                    };
                }
                stack.push(next);
                next = match self.read_ptr(next.add(16)) {
                    Ok(left) => left,
                    Err(error) => {
                        return Walk {
                            items,
                            end: WalkEnd::Broken(next, error),
                        };
                    }
                };
            }
            let Some(node) = stack.pop() else {
                return Walk::done(items);
            };
            if items.len() >= limit {
                return Walk {
                    items,
                    end: WalkEnd::Limit(limit),
                };
            }
            items.push(node);
            next = match self.read_ptr(node.add(8)) {
                Ok(right) => right,
                Err(error) => {
                    return Walk {
                        items,
                        end: WalkEnd::Broken(node, error),
                    };
                }
            };
        }
    }

    /// The entries of a `struct xarray`: index and pointer, ascending. Value entries and
    /// internal markers (retry, sibling, zero) are not pointers and are left out.
    ///
    /// # Errors
    /// When this kernel's xarray does not look like one.
    pub fn xarray(&self, xarray: &Object<'_>, limit: usize) -> Result<Walk<(u64, Kva)>> {
        let node_type = self.btf.find("struct xa_node")?;
        let mut walk = XaWalk {
            slots: self.field(node_type, "slots")?.offset,
            shift: self.field(node_type, "shift")?.offset,
            limit,
            entered: HashSet::new(),
            items: Vec::new(),
            problem: None,
        };
        let head = xarray.member("xa_head")?.ptr()?;
        let stopped = self.xa_entry(head, 0, MAX_XA_DEPTH, &mut walk);
        let end = stopped.err().or(walk.problem).unwrap_or(WalkEnd::Complete);
        Ok(Walk {
            items: walk.items,
            end,
        })
    }

    /// Visits one slot; an error ends the whole walk. An unreadable node costs the branch below
    /// it and is noted.
    fn xa_entry(
        &self,
        entry: Kva,
        index: u64,
        depth: usize,
        walk: &mut XaWalk,
    ) -> std::result::Result<(), WalkEnd> {
        if entry.is_null() || entry.0 & 1 == 1 {
            return Ok(());
        }
        if entry.0 & 3 == 0 {
            if walk.items.len() >= walk.limit {
                return Err(WalkEnd::Limit(walk.limit));
            }
            walk.items.push((index, entry));
            return Ok(());
        }
        // Internal: above 4096 a node, below a marker.
        if entry.0 <= 4096 {
            return Ok(());
        }
        let node = entry.sub(2);
        // Every node has one parent, so a second visit is a loop, and would be exponential.
        if depth == 0 || walk.entered.len() >= MAX_XA_NODES || !walk.entered.insert(node) {
            return Err(WalkEnd::Cycle(node));
        }
        let mut shift = [0; 1];
        let mut slots = [0; 512];
        let read = self
            .read(node.add(walk.shift), &mut shift)
            .and_then(|()| self.read(node.add(walk.slots), &mut slots));
        if let Err(error) = read {
            walk.problem.get_or_insert(WalkEnd::Broken(node, error));
            return Ok(());
        }
        let [shift] = shift;
        for (slot, raw) in (0u64..).zip(slots.as_chunks::<8>().0) {
            let child = Kva(u64::from_le_bytes(*raw));
            let child_index = index | slot.checked_shl(u32::from(shift)).unwrap_or(0);
            self.xa_entry(child, child_index, depth - 1, walk)?;
        }
        Ok(())
    }

    /// The entries of a `struct idr`: id and pointer, ascending.
    ///
    /// # Errors
    /// As [`Kernel::xarray`].
    pub fn idr(&self, idr: &Object<'_>, limit: usize) -> Result<Walk<(u64, Kva)>> {
        let base = u64::from(idr.member("idr_base")?.u32()?);
        let walk = self.xarray(&idr.member("idr_rt")?, limit)?;
        Ok(walk.map(|(index, entry)| (index.wrapping_add(base), entry)))
    }

    /// The `struct rhash_head` nodes of an `rhashtable`, bucket by bucket; during a resize also
    /// those already moved to the next table.
    ///
    /// # Errors
    /// When this kernel's rhashtable does not look like one.
    pub fn rhashtable(&self, table: &Object<'_>, limit: usize) -> Result<Walk<Kva>> {
        let mut items = Vec::new();
        let mut end = WalkEnd::Complete;
        let mut bucket_table = table.member("tbl")?.deref()?;
        // A resize chains one table, a resize of that another; more is a cycle.
        for _ in 0..4 {
            let size = u64::from(bucket_table.member("size")?.u32()?);
            let nest = bucket_table.member("nest")?.u32()?;
            if !size.is_power_of_two() || nest > 9 {
                return Err(Error::Implausible {
                    what: "bucket_table".into(),
                    found: format!("size {size}, nest {nest}"),
                    why: "a power of two, nested by at most 9 bits",
                });
            }
            let buckets = bucket_table.member("buckets")?.address();
            if size > MAX_BUCKETS {
                end = WalkEnd::Limit(limit);
            }
            for index in 0..size.min(MAX_BUCKETS) {
                let bucket = match self.rht_bucket(buckets, index, size, nest) {
                    Ok(Some(bucket)) => bucket,
                    Ok(None) => continue,
                    Err(error) => {
                        end = WalkEnd::Broken(buckets, error);
                        continue;
                    }
                };
                // Bit 0 of the head is the bucket's lock; an odd pointer further on is the end.
                let first = self.read_ptr(bucket).map(|head| Kva(head.0 & !1));
                let walk = self.chain(first, bucket, limit - items.len().min(limit), |node| {
                    node.0 & 1 == 1 || node.is_null()
                });
                items.extend(walk.items);
                if walk.end.is_cut() {
                    end = walk.end;
                    if matches!(end, WalkEnd::Limit(_)) {
                        return Ok(Walk { items, end });
                    }
                }
            }
            let future = bucket_table.member("future_tbl")?;
            if future.ptr()?.is_null() {
                return Ok(Walk { items, end });
            }
            bucket_table = future.deref()?;
        }
        Ok(Walk {
            items,
            end: WalkEnd::Cycle(bucket_table.address()),
        })
    }

    /// The address of bucket `index`: in the array, or in the tree of pages that a table which
    /// could not be allocated whole consists of (`rht_bucket_nested`).
    fn rht_bucket(&self, buckets: Kva, index: u64, size: u64, nest: u32) -> Result<Option<Kva>> {
        /// log2 of the pointers in a page.
        const SHIFT: u32 = 9;
        if nest == 0 {
            return Ok(Some(buckets.add(index * 8)));
        }
        let mut index = index;
        let mut size = size >> nest.min(63);
        let mut table = self.read_ptr(buckets)?;
        let nest_mask = (1u64 << nest.min(63)) - 1;
        let mut slot = index & nest_mask;
        index >>= nest.min(63);
        for _ in 0..8 {
            if table.is_null() {
                return Ok(None);
            }
            if size <= 1 << SHIFT {
                let inner = self.read_ptr(table.add(slot * 8))?;
                return Ok((!inner.is_null()).then(|| inner.add((index & (size - 1)) * 8)));
            }
            table = self.read_ptr(table.add(slot * 8))?;
            slot = index & ((1 << SHIFT) - 1);
            index >>= SHIFT;
            size >>= SHIFT;
        }
        Ok(None)
    }

    /// The entries of a `struct maple_tree`: the first index of each entry's range, and its
    /// pointer, ascending (`mas_for_each()`, lib/maple_tree.c).
    ///
    /// # Errors
    /// When this kernel's maple tree does not look like one.
    pub fn maple_tree(&self, tree: &Object<'_>, limit: usize) -> Result<Walk<(u64, Kva)>> {
        // The low byte of a pointer to a node holds its type and marks (`mte_node_type()`).
        const NODE_MASK: u64 = 0xff;
        let kind = |name: &str| self.btf.enumerator("enum maple_type", name);
        let (leaf, range) = (kind("maple_leaf_64")?, kind("maple_range_64")?);
        let arange = kind("maple_arange_64")?;
        let range_node = self.maple_node("struct maple_range_64")?;
        let arange_node = self.maple_node("struct maple_arange_64")?;
        let is_node = |entry: Kva| entry.0 & 3 == 2 && entry.0 > 4096;

        let root = tree.member("ma_root")?.ptr()?;
        if !is_node(root) {
            // One entry, at index 0.
            let alone = !root.is_null() && root.0 & 3 == 0;
            return Ok(Walk::done(if alone { vec![(0, root)] } else { Vec::new() }));
        }
        let mut items = Vec::new();
        let mut end = WalkEnd::Complete;
        let mut entered = HashSet::new();
        let mut stack = vec![(root, 0u64, u64::MAX)];
        while let Some((entry, min, max)) = stack.pop() {
            let node = Kva(entry.0 & !NODE_MASK);
            let ty = i64::try_from(entry.0 >> 3 & 0xf).unwrap_or(0);
            let is_leaf = ty == leaf;
            let layout = if is_leaf || ty == range {
                &range_node
            } else if ty == arange {
                &arange_node
            } else {
                end = WalkEnd::Broken(
                    node,
                    Error::Implausible {
                        what: "the type of a maple node".into(),
                        found: ty.to_string(),
                        why: "a leaf, a range or a range with gaps",
                    },
                );
                continue;
            };
            if entered.len() >= MAX_MAPLE_NODES || !entered.insert(node) {
                end = WalkEnd::Cycle(node);
                break;
            }
            let words = |at: u64, count: u64| self.read_bytes(node.add(at), count * 8);
            let slots = match words(layout.slots, layout.count) {
                Ok(slots) => slots,
                Err(error) => {
                    end = WalkEnd::Broken(node, error);
                    continue;
                }
            };
            // The last slot has no pivot: it reaches to the node's end.
            let pivots = match words(layout.pivots, layout.count - 1) {
                Ok(pivots) => pivots,
                Err(error) => {
                    end = WalkEnd::Broken(node, error);
                    continue;
                }
            };
            let mut pivots = pivots.as_chunks::<8>().0.iter();
            let mut children = Vec::new();
            let mut first = min;
            for (slot, raw) in (0u64..).zip(slots.as_chunks::<8>().0) {
                let child = Kva(u64::from_le_bytes(*raw));
                let pivot = pivots.next().map(|pivot| u64::from_le_bytes(*pivot));
                // A pivot of 0 behind the first slot: this one is the last in use.
                let last = pivot
                    .filter(|&pivot| slot == 0 || pivot != 0)
                    .unwrap_or(max);
                if last < first || last > max {
                    let error = Error::Implausible {
                        what: "a pivot of a maple node".into(),
                        found: last.to_string(),
                        why: "ascending, within the node's range",
                    };
                    end = WalkEnd::Broken(node, error);
                    break;
                }
                if is_leaf {
                    // Not null, and no internal marker.
                    if !child.is_null() && child.0 & 3 == 0 {
                        if items.len() >= limit {
                            return Ok(Walk {
                                items,
                                end: WalkEnd::Limit(limit),
                            });
                        }
                        items.push((first, child));
                    }
                } else if !child.is_null() {
                    children.push((child, first, last));
                }
                if last == max {
                    break;
                }
                first = last.wrapping_add(1);
            }
            stack.extend(children.into_iter().rev());
        }
        Ok(Walk { items, end })
    }

    fn maple_node(&self, name: &str) -> Result<MapleNode> {
        let ty = self.btf.find(name)?;
        let slots = self.field(ty, "slot")?;
        let count = self.btf.array(slots.ty).map(|array| array.len);
        match count {
            Some(count @ 2..=64) => Ok(MapleNode {
                pivots: self.field(ty, "pivot")?.offset,
                slots: slots.offset,
                count: u64::from(count),
            }),
            _ => Err(Error::WrongType {
                what: format!("{name}.slot"),
                expected: "an array of 2 to 64 slots",
                found: self.btf.describe(slots.ty),
            }),
        }
    }
}
