//! The kernel's maps, by name.

use std::collections;
use std::hash::Hash;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::{Mutex, MutexGuard, RwLock};

use aya::maps::{Array, HashMap, Map, MapData, MapError, SkStorage};
use aya::{Ebpf, Pod};

use super::ProbeError;
use crate::locks::{lock, read, write};

/// Twice the largest map.
const LONGEST_WALK: usize = 2 * 65_536;

/// A hash map.
pub(super) struct Table<K, V> {
    name: &'static str,
    map: Mutex<HashMap<MapData, K, V>>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    pub(super) fn take(object: &mut Ebpf, name: &'static str) -> Result<Self, ProbeError> {
        Ok(Table { name, map: Mutex::new(take(object, name)?) })
    }

    pub(super) fn insert(&self, key: K, value: V) -> Result<(), ProbeError> {
        let mut map = self.map();
        map.insert(key, value, 0).map_err(|source| match errno(&source) {
            Some(libc::E2BIG) => ProbeError::Full { map: self.name, entries: map.keys().count() },
            Some(_) | None => ProbeError::Map { map: self.name, source },
        })
    }

    pub(super) fn get(&self, key: K) -> Result<Option<V>, ProbeError> {
        found(self.name, self.map().get(&key, 0))
    }

    pub(super) fn remove(&self, key: K) -> Result<(), ProbeError> {
        found(self.name, self.map().remove(&key)).map(drop)
    }

    /// All entries; those that come and go meanwhile may be missing. A walk starts anew when the entry that it stands on is
    /// removed, so what was seen twice counts once, and the walk ends though others keep removing.
    pub(super) fn entries(&self) -> Result<collections::HashMap<K, V>, ProbeError>
    where
        K: Eq + Hash,
    {
        let map = self.map();
        let mut entries = collections::HashMap::new();
        for key in map.keys().take(LONGEST_WALK) {
            let Some(key) = found(self.name, key)? else { break };
            if let Some(value) = found(self.name, map.get(&key, 0))? {
                entries.insert(key, value);
            }
        }
        Ok(entries)
    }

    fn map(&self) -> MutexGuard<'_, HashMap<MapData, K, V>> {
        lock(&self.map)
    }
}

/// A few values at fixed places.
pub(super) struct Row<V: Pod> {
    name: &'static str,
    map: Mutex<Array<MapData, V>>,
}

impl<V: Pod> Row<V> {
    pub(super) fn take(object: &mut Ebpf, name: &'static str) -> Result<Self, ProbeError> {
        Ok(Row { name, map: Mutex::new(take(object, name)?) })
    }

    pub(super) fn get(&self, index: u32) -> Result<V, ProbeError> {
        self.map().get(&index, 0).map_err(|source| ProbeError::Map { map: self.name, source })
    }

    pub(super) fn set(&self, index: u32, value: V) -> Result<(), ProbeError> {
        self.map().set(index, value, 0).map_err(|source| ProbeError::Map { map: self.name, source })
    }

    fn map(&self) -> MutexGuard<'_, Array<MapData, V>> {
        lock(&self.map)
    }
}

/// Values on sockets that this process has open. Listeners alone are written to.
pub(super) struct OnSockets<V: Pod> {
    name: &'static str,
    map: RwLock<SkStorage<MapData, V>>,
}

impl<V: Pod> OnSockets<V> {
    pub(super) fn take(object: &mut Ebpf, name: &'static str) -> Result<Self, ProbeError> {
        Ok(OnSockets { name, map: RwLock::new(take(object, name)?) })
    }

    pub(super) fn get(&self, socket: &impl AsFd) -> Result<Option<V>, ProbeError> {
        found(self.name, read(&self.map).get(&socket.as_fd().as_raw_fd(), 0))
    }

    pub(super) fn insert(&self, socket: &impl AsFd, value: V) -> Result<(), ProbeError> {
        write(&self.map)
            .insert(&socket.as_fd().as_raw_fd(), value, 0)
            .map_err(|source| ProbeError::Map { map: self.name, source })
    }
}

fn take<M: TryFrom<Map, Error = MapError>>(object: &mut Ebpf, name: &'static str) -> Result<M, ProbeError> {
    let map = object.take_map(name).ok_or_else(|| ProbeError::Object(format!("it has no map {name}")))?;
    M::try_from(map).map_err(|source| ProbeError::Map { map: name, source })
}

/// That something is not there is no error.
fn found<T>(map: &'static str, result: Result<T, MapError>) -> Result<Option<T>, ProbeError> {
    result.map(Some).or_else(|source| match errno(&source) {
        Some(libc::ENOENT) => Ok(None),
        Some(_) | None => Err(ProbeError::Map { map, source }),
    })
}

fn errno(error: &MapError) -> Option<i32> {
    if let MapError::SyscallError(error) = error {
        error.io_error.raw_os_error()
    } else {
        // aya's own word for the same.
        matches!(error, MapError::KeyNotFound).then_some(libc::ENOENT)
    }
}
