// SPDX-License-Identifier: GPL-2.0
//! An ordered index of intervals whose versions share structure: a B+ tree that is never changed. A change makes a new
//! version, which has new nodes on the way from the root to the place of the change and shares all others with the
//! version before. So readers of any version are undisturbed, and a change that fails for want of memory has changed
//! nothing.
//!
//! Elements stand in the leaves in the order of their keys. Each inner node knows of its children where the first
//! element begins and the largest address at which one ends (their *reach*): intervals that meet a range are found
//! without a look at the others, also where intervals overlap.
//!
//! Nodes hold up to `L` elements or [`FAN`] children. All but those on the right edge are at least a third full (half
//! full until elements go), so recursion is as deep as the tree is high: 8 with 32,764 elements.
#![forbid(unsafe_code)]

use core::{cmp, slice};

use crate::linux::shared::{self, NoMemory, Shared};

/// Children of an inner node: with them it fills 512 bytes.
const FAN: usize = 12;

/// What elements are ordered by: where the interval begins, and a number that tells those apart that begin together.
pub type Key = (u64, u32);

/// An interval.
pub trait Element: Clone + Default {
    /// Where it stands.
    fn key(&self) -> Key;

    /// The address after its last one.
    fn end(&self) -> u64;
}

/// One version of the index. Leaves hold up to `L` elements.
#[derive(Clone)]
pub struct Index<E, const L: usize> {
    root: Node<E, L>,
}

/// A subtree; the numbers say how many elements or children the arrays hold.
#[derive(Clone)]
enum Node<E, const L: usize> {
    Empty,
    Leaf(u8, Shared<[E; L]>),
    Inner(u8, Shared<[Kid<E, L>; FAN]>),
}

/// A child of an inner node. The default stands where there is none.
#[derive(Clone)]
struct Kid<E, const L: usize> {
    /// Key of the first element.
    first: Key,
    /// Largest end of an element.
    reach: u64,
    node: Node<E, L>,
}

impl<E, const L: usize> Default for Kid<E, L> {
    fn default() -> Self {
        Self {
            first: (0, 0),
            reach: 0,
            node: Node::Empty,
        }
    }
}

/// The subtrees that take the place of one: none, one or two.
struct Parts<E, const L: usize> {
    kids: [Kid<E, L>; 2],
    len: usize,
}

impl<E, const L: usize> Parts<E, L> {
    fn as_slice(&self) -> &[Kid<E, L>] {
        live(&self.kids, self.len)
    }
}

/// What a node is to hold, in three pieces.
struct Content<'a, T> {
    before: &'a [T],
    new: &'a [T],
    after: &'a [T],
}

impl<'a, T: Clone + Default> Content<'a, T> {
    /// `items` with `new` in place of the `cut` items at `at`.
    fn splice(items: &'a [T], at: usize, cut: usize, new: &'a [T]) -> Self {
        Self {
            before: live(items, at),
            new,
            after: items.get(at.saturating_add(cut)..).unwrap_or(&[]),
        }
    }

    fn len(&self) -> usize {
        self.before.len() + self.new.len() + self.after.len()
    }

    #[inline]
    fn item(&self, index: usize) -> Option<&T> {
        let Some(index) = index.checked_sub(self.before.len()) else {
            return self.before.get(index);
        };
        match index.checked_sub(self.new.len()) {
            None => self.new.get(index),
            Some(index) => self.after.get(index),
        }
    }

    /// An array of `len` items from number `from` on.
    fn array<const N: usize>(
        &self,
        from: usize,
        len: usize,
    ) -> Result<(u8, Shared<[T; N]>), NoMemory> {
        let item = |i| self.item(from.wrapping_add(i)).filter(|_| i < len);
        let array = shared::array(|i| item(i).cloned().unwrap_or_default())?;
        Ok((cmp::min(len, N) as u8, array))
    }

    /// The items as none, one or two nodes of up to `N`, by `kid`; on the right `edge` of the tree, if it is so.
    fn nodes<E: Element, const L: usize, const N: usize>(
        &self,
        edge: bool,
        kid: impl Fn(u8, Shared<[T; N]>) -> Kid<E, L>,
    ) -> Result<Parts<E, L>, NoMemory> {
        let total = self.len();
        let first = match total {
            _ if total <= N => total,
            // At the end: whoever adds in order gets full nodes.
            _ if edge && self.after.is_empty() => N,
            _ => total.div_ceil(2),
        };
        let mut parts = Parts {
            kids: [Kid::default(), Kid::default()],
            len: 0,
        };
        let mut from = 0;
        for place in &mut parts.kids {
            let len = if from == 0 {
                first
            } else {
                total.saturating_sub(from)
            };
            if len == 0 {
                break;
            }
            let (n, array) = self.array(from, len)?;
            *place = kid(n, array);
            from = from.saturating_add(len);
            parts.len += 1;
        }
        Ok(parts)
    }
}

impl<E: Element> Content<'_, E> {
    fn leaves<const L: usize>(&self, edge: bool) -> Result<Parts<E, L>, NoMemory> {
        self.nodes(edge, |len, items: Shared<[E; L]>| {
            let here = live(&*items, len.into());
            Kid {
                first: here.first().map_or((0, 0), E::key),
                reach: here.iter().map(E::end).max().unwrap_or(0),
                node: Node::Leaf(len, items),
            }
        })
    }
}

impl<E: Element, const L: usize> Content<'_, Kid<E, L>> {
    fn inners(&self, edge: bool) -> Result<Parts<E, L>, NoMemory> {
        self.nodes(edge, |len, kids: Shared<[Kid<E, L>; FAN]>| {
            let here = live(&*kids, len.into());
            Kid {
                first: here.first().map_or((0, 0), |k| k.first),
                reach: here.iter().map(|k| k.reach).max().unwrap_or(0),
                node: Node::Inner(len, kids),
            }
        })
    }
}

/// The first `len` items.
#[inline]
fn live<T>(items: &[T], len: usize) -> &[T] {
    items.get(..len).unwrap_or(items)
}

/// Number of the child whose subtree has the place of `key`.
#[inline]
fn child<E, const L: usize>(kids: &[Kid<E, L>], key: Key) -> usize {
    kids.partition_point(|k| k.first <= key).saturating_sub(1)
}

impl<E: Element, const L: usize> Kid<E, L> {
    /// The content of two neighbours, which are equally high, in one or evenly in two.
    fn join(&self, next: &Self) -> Result<Parts<E, L>, NoMemory> {
        match (&self.node, &next.node) {
            (Node::Leaf(n, a), Node::Leaf(m, b)) => Content {
                before: live(&**a, (*n).into()),
                new: &[],
                after: live(&**b, (*m).into()),
            }
            .leaves(false),
            (Node::Inner(n, a), Node::Inner(m, b)) => Content {
                before: live(&**a, (*n).into()),
                new: &[],
                after: live(&**b, (*m).into()),
            }
            .inners(false),
            // Does not occur; as they are.
            _ => Ok(Parts {
                kids: [self.clone(), next.clone()],
                len: 2,
            }),
        }
    }
}

impl<E: Element, const L: usize> Node<E, L> {
    /// Less than a third full.
    fn is_lean(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Leaf(len, _) => usize::from(*len) < L / 3,
            Self::Inner(len, _) => usize::from(*len) < FAN / 3,
        }
    }

    /// With `item`, in place of one with the same key. `edge`: this is the right edge of the tree.
    fn put(&self, item: &E, edge: bool) -> Result<Parts<E, L>, NoMemory> {
        let key = item.key();
        let new = slice::from_ref(item);
        match self {
            Self::Empty => Content::splice(&[], 0, 0, new).leaves(edge),
            Self::Leaf(len, items) => {
                let items = live(&**items, (*len).into());
                let at = items.partition_point(|e| e.key() < key);
                let same = items.get(at).is_some_and(|e| e.key() == key);
                Content::splice(items, at, same.into(), new).leaves(edge)
            }
            Self::Inner(len, kids) => {
                let kids = live(&**kids, (*len).into());
                let at = child(kids, key);
                let edge = edge && at.saturating_add(1) == kids.len();
                let old = kids.get(at).map_or(&Self::Empty, |k| &k.node);
                let parts = old.put(item, edge)?;
                Content::splice(kids, at, 1, parts.as_slice()).inners(edge)
            }
        }
    }

    /// Without the element at `key`; `None` if there is none.
    fn take(&self, key: Key) -> Result<Option<Parts<E, L>>, NoMemory> {
        match self {
            Self::Empty => Ok(None),
            Self::Leaf(len, items) => {
                let items = live(&**items, (*len).into());
                let at = items.partition_point(|e| e.key() < key);
                if items.get(at).is_none_or(|e| e.key() != key) {
                    return Ok(None);
                }
                Content::splice(items, at, 1, &[]).leaves(false).map(Some)
            }
            Self::Inner(len, kids) => {
                let kids = live(&**kids, (*len).into());
                let at = child(kids, key);
                let Some(parts) = kids.get(at).map_or(Ok(None), |k| k.node.take(key))? else {
                    return Ok(None);
                };
                let lean = parts.as_slice().first().filter(|k| k.node.is_lean());
                let before = at.checked_sub(1).and_then(|i| kids.get(i));
                let after = kids.get(at.saturating_add(1));
                match (lean, before, after) {
                    (Some(lean), Some(before), _) => {
                        let joined = before.join(lean)?;
                        Content::splice(kids, at.saturating_sub(1), 2, joined.as_slice())
                            .inners(false)
                    }
                    (Some(lean), None, Some(after)) => {
                        let joined = lean.join(after)?;
                        Content::splice(kids, at, 2, joined.as_slice()).inners(false)
                    }
                    _ => Content::splice(kids, at, 1, parts.as_slice()).inners(false),
                }
                .map(Some)
            }
        }
    }

    fn try_meeting<B>(
        &self,
        start: u64,
        end: u64,
        f: &mut impl FnMut(&E) -> Result<(), B>,
    ) -> Result<(), B> {
        match self {
            Self::Empty => {}
            Self::Leaf(len, items) => {
                for e in live(&**items, (*len).into()) {
                    if e.key().0 >= end {
                        break;
                    }
                    if e.end() > start {
                        f(e)?;
                    }
                }
            }
            Self::Inner(len, kids) => {
                for k in live(&**kids, (*len).into()) {
                    if k.first.0 >= end {
                        break;
                    }
                    if k.reach > start {
                        k.node.try_meeting(start, end, f)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl<E: Element, const L: usize> Default for Index<E, L> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Element, const L: usize> Index<E, L> {
    /// Without elements.
    pub const fn new() -> Self {
        Self { root: Node::Empty }
    }

    /// A version with `item`, in place of one with the same key.
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn insert(&self, item: &E) -> Result<Self, NoMemory> {
        let mut parts = self.root.put(item, true)?;
        if parts.len > 1 {
            parts = Content::splice(&[], 0, 0, parts.as_slice()).inners(false)?;
        }
        let [root, _] = parts.kids;
        Ok(Self { root: root.node })
    }

    /// A version without the element at `key`; the same if there is none.
    ///
    /// # Errors
    ///
    /// No memory.
    pub fn remove(&self, key: Key) -> Result<Self, NoMemory> {
        let Some(parts) = self.root.take(key)? else {
            return Ok(self.clone());
        };
        let [root, _] = parts.kids;
        let mut root = root.node;
        // A root with one child is none.
        while let Node::Inner(1, kids) = &root {
            let only = kids.first().map_or(Node::Empty, |k| k.node.clone());
            root = only;
        }
        Ok(Self { root })
    }

    /// The last element that begins at `start` or below.
    #[inline]
    pub fn last_from(&self, start: u64) -> Option<&E> {
        // From the end of each node: shorter than a search by halves in so few.
        let mut node = &self.root;
        loop {
            match node {
                Node::Empty => return None,
                Node::Leaf(len, items) => {
                    let mut items = live(&**items, (*len).into()).iter();
                    return items.rfind(|e| e.key().0 <= start);
                }
                Node::Inner(len, kids) => {
                    let mut kids = live(&**kids, (*len).into()).iter();
                    node = &kids.rfind(|k| k.first.0 <= start)?.node;
                }
            }
        }
    }

    /// Runs `f` on the elements that meet the addresses from `start` (included) to `end` (excluded), in order, until it
    /// fails. Takes O(log n) beside the elements found.
    ///
    /// # Errors
    ///
    /// What `f` failed with.
    pub fn try_meeting<B>(
        &self,
        start: u64,
        end: u64,
        mut f: impl FnMut(&E) -> Result<(), B>,
    ) -> Result<(), B> {
        self.root.try_meeting(start, end, &mut f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::shared::ARRAYS_LEFT;
    use std::{collections::BTreeMap, vec::Vec};

    #[derive(Clone, Debug, Default, PartialEq)]
    struct Span(u64, u32, u64);

    impl Element for Span {
        fn key(&self) -> Key {
            (self.0, self.1)
        }

        fn end(&self) -> u64 {
            self.2
        }
    }

    type Tree = Index<Span, 6>;
    type Model = BTreeMap<Key, Span>;

    /// Numbers that look random (xorshift).
    struct Random(u64);

    impl Random {
        fn below(&mut self, n: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % n
        }
    }

    impl Tree {
        fn all(&self, start: u64, end: u64) -> Vec<Span> {
            let mut all = Vec::new();
            let done: Result<(), ()> = self.try_meeting(start, end, |e| {
                all.push(e.clone());
                Ok(())
            });
            assert_eq!(done, Ok(()));
            all
        }

        /// Holds the structure against its rules and returns the height.
        fn check(&self) -> usize {
            fn walk(node: &Node<Span, 6>, root: bool, edge: bool) -> (usize, Key, u64) {
                assert!(root || edge || !node.is_lean());
                match node {
                    Node::Empty => {
                        assert!(root);
                        (0, (0, 0), 0)
                    }
                    Node::Leaf(len, items) => {
                        let items = &items[..usize::from(*len)];
                        assert!(items.windows(2).all(|w| w[0].key() < w[1].key()));
                        let reach = items.iter().map(Span::end).max().unwrap();
                        (1, items[0].key(), reach)
                    }
                    Node::Inner(len, kids) => {
                        let kids = &kids[..usize::from(*len)];
                        assert!(!root || kids.len() > 1);
                        let mut height = None;
                        for (i, k) in kids.iter().enumerate() {
                            let last = i + 1 == kids.len();
                            let (h, first, reach) = walk(&k.node, false, edge && last);
                            assert_eq!((first, reach), (k.first, k.reach));
                            assert!(last || first < kids[i + 1].first);
                            assert_eq!(*height.get_or_insert(h), h);
                        }
                        let reach = kids.iter().map(|k| k.reach).max().unwrap();
                        (height.unwrap() + 1, kids[0].first, reach)
                    }
                }
            }
            walk(&self.root, true, true).0
        }
    }

    fn compare(tree: &Tree, model: &Model, random: &mut Random) {
        tree.check();
        assert!(tree.all(0, !0).iter().eq(model.values()));
        for _ in 0..8 {
            let a = random.below(1100);
            let b = a + random.below(50);
            let want = model.values().filter(|e| e.0 < b && e.2 > a);
            assert!(tree.all(a, b).iter().eq(want), "{a} {b}");
            let want = model.range(..=(a, u32::MAX)).next_back().map(|(_, e)| e);
            assert_eq!(tree.last_from(a), want);
        }
    }

    #[test]
    fn as_a_model_and_versions_stay() {
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        let (mut tree, mut model) = (Tree::new(), Model::new());
        let mut old = Vec::new();
        for step in 0..12_000 {
            // Grows, shrinks, and so on.
            let grow = if step / 2000 % 2 == 0 { 3 } else { 1 };
            if random.below(4) < grow {
                let start = random.below(1000);
                let new = Span(start, random.below(4) as u32, start + 1 + random.below(100));
                tree = tree.insert(&new).unwrap();
                model.insert(new.key(), new);
            } else {
                let at = random.below(1000);
                let key = match model.range((at, 0)..).next() {
                    Some((key, _)) if random.below(8) != 0 => *key,
                    _ => (at, 9),
                };
                tree = tree.remove(key).unwrap();
                model.remove(&key);
            }
            if step % 97 == 0 {
                compare(&tree, &model, &mut random);
                old.push((tree.clone(), model.clone()));
            }
        }
        while let Some(key) = model.keys().next().copied() {
            tree = tree.remove(key).unwrap();
            model.remove(&key);
        }
        compare(&tree, &model, &mut random);
        assert!(matches!(tree.root, Node::Empty));
        // What was made later has changed none of the versions before.
        for (tree, model) in old {
            compare(&tree, &model, &mut random);
        }
    }

    #[test]
    fn height() {
        let n = 32_764;
        let orders: [fn(u64) -> u64; 3] =
            [|i| i, |i| 1 << 20 | !i & 0xf_ffff, |i| i * 7919 % 32_771];
        for order in orders {
            let span = |i| Span(order(i), 0, order(i) + 1);
            let mut tree = Tree::new();
            for i in 0..n {
                tree = tree.insert(&span(i)).unwrap();
            }
            assert!(tree.check() <= 7, "{}", tree.check());
            assert_eq!(tree.all(0, !0).len(), n as usize);
            for i in (0..n).filter(|i| i % 16 != 0) {
                tree = tree.remove(span(i).key()).unwrap();
            }
            assert!(tree.check() <= 6, "{}", tree.check());
            assert_eq!(tree.all(0, !0).len(), 2048);
        }
    }

    #[test]
    fn one_path_is_new() {
        fn arrays(node: &Node<Span, 6>, found: &mut Vec<*const ()>) {
            match node {
                Node::Empty => {}
                Node::Leaf(_, items) => found.push(Shared::as_ptr(items).cast()),
                Node::Inner(len, kids) => {
                    found.push(Shared::as_ptr(kids).cast());
                    kids[..usize::from(*len)]
                        .iter()
                        .for_each(|k| arrays(&k.node, found));
                }
            }
        }
        let mut tree = Tree::new();
        for i in 0..2000 {
            tree = tree.insert(&Span(i * 10, 0, i * 10 + 5)).unwrap();
        }
        let (mut before, mut after) = (Vec::new(), Vec::new());
        arrays(&tree.root, &mut before);
        arrays(&tree.insert(&Span(5005, 0, 5006)).unwrap().root, &mut after);
        let new = after.iter().filter(|p| !before.contains(p)).count();
        assert!(new <= 2 * tree.check() && before.len() > 300, "{new}");
    }

    #[test]
    fn only_what_meets_is_looked_at() {
        // All begin early; one ends late.
        let mut tree = Tree::new();
        for i in 0..1000 {
            tree = tree
                .insert(&Span(i, 0, if i == 500 { 1 << 40 } else { i + 2 }))
                .unwrap();
        }
        assert_eq!(tree.all(1 << 30, 1 << 31), [Span(500, 0, 1 << 40)]);
        let mut seen = 0;
        let stopped = tree.try_meeting(0, !0, |e| {
            seen += 1;
            if e.0 == 10 {
                Err(e.0)
            } else {
                Ok(())
            }
        });
        assert_eq!((stopped, seen), (Err(10), 11));
    }

    #[test]
    fn no_memory() {
        let mut tree = Tree::new();
        for i in 0..500 {
            tree = tree.insert(&Span(i * 2, 0, i * 2 + 1)).unwrap();
        }
        let whole = tree.all(0, !0);
        for left in 0..4 {
            ARRAYS_LEFT.set(left);
            assert!(tree.insert(&Span(501, 0, 502)).is_err());
            ARRAYS_LEFT.set(left.min(2));
            assert!(tree.remove((500, 0)).is_err());
        }
        ARRAYS_LEFT.set(usize::MAX);
        tree.check();
        assert_eq!(tree.all(0, !0), whole);
        assert!(tree.remove((501, 0)).unwrap().all(0, !0) == whole);
    }
}
