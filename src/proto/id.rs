//! Generation-checked ids: a stale or foreign id finds nothing.

/// What an id names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A peer.
    Peer = 1,
    /// A read or write.
    Transfer = 2,
    /// An offer.
    Offer = 3,
    /// An accept.
    Accept = 4,
    /// A session.
    Session = 5,
    /// A registration with a router.
    Registration = 6,
    /// An exchange with a worker of vLLM's MoRIIOConnector.
    Exchange = 7,
}

/// Kind (4 bits), generation (32 bits), index (28 bits); never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Id(pub u64);

const INDEX_BITS: u32 = 28;

impl Id {
    fn new(kind: Kind, generation: u32, index: usize) -> Id {
        Id(u64::from(kind as u8) << 60 | u64::from(generation) << INDEX_BITS | index as u64)
    }

    /// What it names, if it is of a known kind.
    pub fn kind(self) -> Option<Kind> {
        [Kind::Peer, Kind::Transfer, Kind::Offer, Kind::Accept, Kind::Session, Kind::Registration, Kind::Exchange]
            .into_iter()
            .find(|k| u64::from(*k as u8) == self.0 >> 60)
    }

    fn index(self) -> usize {
        (self.0 & ((1 << INDEX_BITS) - 1)) as usize
    }
}

enum Slot<T> {
    Free { generation: u32 },
    Full { generation: u32, value: T },
}

/// Values by id. Generations begin at a seed of the agent's own, so that ids of another agent do not fit either.
pub(crate) struct Slab<T> {
    kind: Kind,
    seed: u32,
    slots: Vec<Slot<T>>,
    free: Vec<usize>,
}

impl<T> Slab<T> {
    pub fn new(kind: Kind, seed: u64) -> Slab<T> {
        Slab { kind, seed: (seed ^ (seed >> 32)) as u32, slots: Vec::new(), free: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn insert(&mut self, value: T) -> Id {
        if let Some(index) = self.free.pop()
            && let Some(slot) = self.slots.get_mut(index)
        {
            let generation = match slot {
                Slot::Free { generation } | Slot::Full { generation, .. } => *generation,
            };
            *slot = Slot::Full { generation, value };
            return Id::new(self.kind, generation, index);
        }
        self.slots.push(Slot::Full { generation: self.seed, value });
        Id::new(self.kind, self.seed, self.slots.len() - 1)
    }

    pub fn get(&self, id: Id) -> Option<&T> {
        match self.slots.get(id.index())? {
            Slot::Full { generation, value } if Id::new(self.kind, *generation, id.index()) == id => Some(value),
            _ => None,
        }
    }

    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        let index = id.index();
        match self.slots.get_mut(index)? {
            Slot::Full { generation, value } if Id::new(self.kind, *generation, index) == id => Some(value),
            _ => None,
        }
    }

    pub fn remove(&mut self, id: Id) -> Option<T> {
        self.get(id)?;
        let index = id.index();
        let slot = self.slots.get_mut(index)?;
        let Slot::Full { generation, .. } = slot else { return None };
        let next = Slot::Free { generation: generation.wrapping_add(1) };
        self.free.push(index);
        match std::mem::replace(slot, next) {
            Slot::Full { value, .. } => Some(value),
            Slot::Free { .. } => None,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (Id, &T)> {
        self.slots.iter().enumerate().filter_map(|(i, s)| match s {
            Slot::Full { generation, value } => Some((Id::new(self.kind, *generation, i), value)),
            Slot::Free { .. } => None,
        })
    }

    pub fn ids(&self) -> Vec<Id> {
        self.iter().map(|(id, _)| id).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_or_foreign_id_finds_nothing() {
        let mut a: Slab<&str> = Slab::new(Kind::Peer, 1);
        let b: Slab<&str> = Slab::new(Kind::Peer, 2);
        let first = a.insert("one");
        assert_eq!(a.get(first), Some(&"one"));
        assert_eq!(b.get(first), None);
        assert_eq!(a.remove(first), Some("one"));
        assert_eq!(a.remove(first), None);
        let second = a.insert("two");
        assert_ne!(first, second);
        assert_eq!((a.get(first), a.get(second), a.len()), (None, Some(&"two"), 1));
        let other: Slab<&str> = Slab::new(Kind::Offer, 1);
        assert_eq!(other.get(second), None);
        assert_eq!(second.kind(), Some(Kind::Peer));
    }
}
