//! The commands to the owners of shards, from one mirror for all shards of the agent.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use postrider_common::key::{self, Key};
use postrider_common::model::command::Command;
use postrider_common::shard::ShardId;
use postrider_common::store::mirror::{self, Update};
use postrider_common::store::{Change, Entry, SharedStore};
use postrider_common::task;
use postrider_common::wire::stored;
use tokio::sync::broadcast;

/// Changes that a worker may be behind: beyond that it looks anyway.
const CHANGES: usize = 256;

/// All commands that stand in the store. Clones are the same.
#[derive(Clone)]
pub struct Commands {
    shared: Arc<Shared>,
    mirror: mirror::Handle,
}

struct Shared {
    commands: Mutex<BTreeMap<ShardId, BTreeMap<Key, Arc<Command>>>>,
    changed: broadcast::Sender<ShardId>,
}

impl Commands {
    /// Starts to mirror the commands of `store`.
    pub fn spawn(group: &task::Group, store: SharedStore) -> Self {
        let shared = Arc::new(Shared {
            commands: Mutex::default(),
            changed: broadcast::Sender::new(CHANGES),
        });
        let target = shared.clone();
        let apply = move |update| target.apply(update);
        let mirror = mirror::spawn(group, "commands", store, key::commands(), false, apply);
        Self { shared, mirror }
    }

    /// Returns when all commands are known for the first time.
    pub async fn synced(&self) {
        self.mirror.synced().await;
    }

    /// The commands to the owner of a shard.
    pub fn of(&self, shard: ShardId) -> BTreeMap<Key, Arc<Command>> {
        self.shared.lock().get(&shard).cloned().unwrap_or_default()
    }

    /// Tells of which shards the commands change from now on.
    pub fn changes(&self) -> broadcast::Receiver<ShardId> {
        self.shared.changed.subscribe()
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<ShardId, BTreeMap<Key, Arc<Command>>>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, update: Update) {
        let mut changed = Vec::new();
        {
            let mut commands = self.lock();
            match update {
                Update::Reset(entries, _) => {
                    changed.extend(commands.keys());
                    commands.clear();
                    for (shard, key, command) in entries.into_iter().filter_map(read) {
                        commands.entry(shard).or_default().insert(key, command);
                        changed.push(shard);
                    }
                }
                Update::Changes(changes) => {
                    for change in changes.changes {
                        match change {
                            Change::Put(entry) => {
                                let Some((shard, key, command)) = read(entry) else {
                                    continue;
                                };
                                commands.entry(shard).or_default().insert(key, command);
                                changed.push(shard);
                            }
                            Change::Delete(key) => {
                                let Some(shard) = key::parse_command(&key) else {
                                    continue;
                                };
                                let left = commands.get_mut(&shard).is_some_and(|of| {
                                    of.remove(&key);
                                    !of.is_empty()
                                });
                                if !left {
                                    commands.remove(&shard);
                                }
                            }
                        }
                    }
                }
            }
        }
        for shard in changed {
            // No one may be listening.
            let _ = self.changed.send(shard);
        }
    }
}

fn read(entry: Entry) -> Option<(ShardId, Key, Arc<Command>)> {
    let shard = key::parse_command(&entry.key)?;
    let command = stored::decode_command(entry.value)
        .inspect_err(|error| tracing::error!(key = %entry.key, %error, "a command cannot be read: it is left alone"));
    Some((shard, entry.key, Arc::new(command.ok()?)))
}
