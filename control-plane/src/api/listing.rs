//! Lists what lies below a prefix of the store, page by page: all pages as of one revision, as long as the store keeps it.

use postrider_common::key::Key;
use postrider_common::store::{Entry, ListRequest, ReadError, Revision, Store};

use super::page::{PageKey, Position, Scope};
use super::status::{Error, Violations};

/// Most stored bytes of a page, beyond which it ends early. A struct of the API is up to six times as long as the JSON text that is stored; clients
/// decode messages of 4 MiB unless they are told otherwise.
const MAX_PAGE_BYTES: usize = 512 << 10;

/// What is listed.
pub(crate) struct Listing<'a> {
    /// Which listing it is.
    pub(crate) scope: Scope<'a>,
    /// Below what.
    pub(crate) prefix: Key,
    /// Most entries of the page.
    pub(crate) size: usize,
    /// The token of the page before; empty for the first page.
    pub(crate) token: &'a str,
}

/// One page.
pub(crate) struct Page {
    /// The entries, ordered by key.
    pub(crate) entries: Vec<Entry>,
    /// Asks for the next page; empty on the last one.
    pub(crate) next_token: String,
    /// What the page shows.
    pub(crate) revision: Revision,
}

/// Lists one page.
///
/// # Errors
/// Invalid if the token is not one of this listing; StoreAway.
pub(crate) async fn list(store: &dyn Store, key: &PageKey, listing: Listing<'_>) -> Result<Page, Error> {
    let position = position(key, &listing)?;
    let mut request = ListRequest {
        prefix: listing.prefix,
        after: position.as_ref().map(|position| Key::from_stored(&position.after)),
        limit: listing.size,
        revision: position.as_ref().map(|position| position.revision),
        keys_only: false,
    };
    let page = match store.list(request.clone()).await {
        // The leader compacts after seconds; a person takes longer to ask for the next page. It continues with what is there now.
        Err(ReadError::Compacted) => {
            request.revision = None;
            store.list(request).await?
        }
        page => page?,
    };
    let mut entries = page.entries;
    let mut bytes = 0;
    let fitting = entries.iter().take_while(|entry| {
        bytes += entry.value.len();
        bytes <= MAX_PAGE_BYTES
    });
    let fitting = fitting.count().max(1);
    let more = page.more || fitting < entries.len();
    entries.truncate(fitting);
    let last = entries.last().filter(|_| more);
    let next_token = last.map(|last| {
        key.seal(
            listing.scope,
            &Position {
                revision: page.revision,
                after: last.key.as_str().to_owned(),
            },
        )
    });
    Ok(Page {
        next_token: next_token.unwrap_or_default(),
        entries,
        revision: page.revision,
    })
}

/// All entries below a prefix as of `revision`, or as of now if that is no longer kept.
///
/// # Errors
/// StoreAway.
pub(crate) async fn list_at(store: &dyn Store, prefix: Key, revision: Revision) -> Result<Vec<Entry>, Error> {
    let mut request = ListRequest {
        prefix,
        after: None,
        limit: 500,
        revision: Some(revision),
        keys_only: false,
    };
    let mut entries = Vec::new();
    loop {
        let page = match store.list(request.clone()).await {
            Err(ReadError::Compacted) => {
                request.revision = None;
                store.list(request.clone()).await?
            }
            page => page?,
        };
        entries.extend(page.entries);
        if !page.more {
            return Ok(entries);
        }
        request.after = entries.last().map(|entry| entry.key.clone());
    }
}

/// The position that the listing's token names; `None` if it begins.
pub(crate) fn position(key: &PageKey, listing: &Listing<'_>) -> Result<Option<Position>, Error> {
    if listing.token.is_empty() {
        return Ok(None);
    }
    key.open(listing.scope, listing.token)
        .filter(|position| position.after.starts_with(listing.prefix.as_str()))
        .map(Some)
        .ok_or_else(|| bad_token("MALFORMED", "is not a token of this listing"))
}

/// That a page token is not one of this listing.
pub(crate) fn bad_token(reason: &'static str, description: &str) -> Error {
    let mut violations = Violations::default();
    violations.add("page_token", reason, description);
    Error::Invalid(violations)
}
