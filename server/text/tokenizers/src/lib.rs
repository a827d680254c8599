//! Tokenizers behind the C interface of `../tokenizers.h`, which says what each function promises.
//!
//! No panic crosses the interface: each function runs inside `guarded`, and a panic becomes an error. Such a panic is
//! not printed, because a text or a file decides what its message says.

mod audit;
mod huggingface;
mod ranked;

use std::cell::Cell;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

/// A tokenizer of either library.
pub trait Tokenize: Send + Sync {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Encoded, String>;
    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, String>;
    /// The spelling of a token, and whether it is special.
    fn token(&self, id: u32) -> Option<(String, bool)>;
    /// One more than the largest id.
    fn end_id(&self) -> u64;
}

/// Ids, and for each the characters of the text that it covers.
#[derive(Default)]
pub struct Encoded {
    pub ids: Vec<u32>,
    pub begins: Vec<u32>,
    pub ends: Vec<u32>,
}

pub struct Tokenizer(Box<dyn Tokenize>);

#[repr(C)]
pub struct Bytes {
    data: *const u8,
    size: usize,
}

#[repr(C)]
pub struct Rank {
    token: Bytes,
    id: u32,
}

/// Owned by the caller until hookline_buffer_free.
#[repr(C)]
pub struct Buffer {
    data: *mut u8,
    size: usize,
}

#[repr(C)]
pub struct Encoding {
    ids: *mut u32,
    begins: *mut u32,
    ends: *mut u32,
    size: usize,
}

impl Bytes {
    /// # Safety
    /// `data` must point to `size` bytes that live as long as the result is used.
    unsafe fn as_slice<'a>(&self) -> &'a [u8] {
        if self.size == 0 {
            &[]
        } else {
            std::slice::from_raw_parts(self.data, self.size)
        }
    }

    unsafe fn as_str<'a>(&self) -> Result<&'a str, String> {
        std::str::from_utf8(self.as_slice()).map_err(|error| format!("is not UTF-8 from byte {} on", error.valid_up_to()))
    }
}

unsafe fn slice_of<'a, T>(data: *const T, size: usize) -> &'a [T] {
    if size == 0 {
        &[]
    } else {
        std::slice::from_raw_parts(data, size)
    }
}

fn into_raw<T>(values: Vec<T>) -> *mut T {
    Box::into_raw(values.into_boxed_slice()) as *mut T
}

unsafe fn free_raw<T>(data: *mut T, size: usize) {
    if !data.is_null() {
        drop(Box::from_raw(std::ptr::slice_from_raw_parts_mut(data, size)));
    }
}

fn set_buffer(buffer: *mut Buffer, bytes: Vec<u8>) {
    let size = bytes.len();
    unsafe { *buffer = Buffer { data: into_raw(bytes), size } };
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Keeps panics inside `guarded` from being printed, because the error that such a panic becomes reports it. Other
/// panics are handled as before.
fn silence_guarded_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !GUARDED.with(Cell::get) {
                before(info);
            }
        }));
    });
}

/// Runs `action`. An error, or a panic as an error, goes to `error`.
fn guarded<T>(error: *mut Buffer, action: impl FnOnce() -> Result<T, String>) -> Option<T> {
    silence_guarded_panics();
    GUARDED.with(|guarded| guarded.set(true));
    let result = catch_unwind(AssertUnwindSafe(action)).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("unknown cause");
        Err(format!("the tokenizer cannot work with it: {what}"))
    });
    GUARDED.with(|guarded| guarded.set(false));
    match result {
        Ok(value) => Some(value),
        Err(message) => {
            set_buffer(error, message.into_bytes());
            None
        }
    }
}

/// # Safety
/// The caller must do as `tokenizers.h` says; the same holds for all functions below.
#[no_mangle]
pub unsafe extern "C" fn hookline_tokenizer_from_json(json: Bytes, error: *mut Buffer) -> *mut Tokenizer {
    guarded(error, || huggingface::load(json.as_slice()))
        .map_or(std::ptr::null_mut(), |tokenizer| Box::into_raw(Box::new(Tokenizer(tokenizer))))
}

#[no_mangle]
pub unsafe extern "C" fn hookline_tokenizer_from_ranks(
    pattern: Bytes,
    ranks: *const Rank,
    rank_count: usize,
    special: *const Rank,
    special_count: usize,
    error: *mut Buffer,
) -> *mut Tokenizer {
    guarded(error, || {
        let ranks = slice_of(ranks, rank_count).iter().map(|rank| (rank.token.as_slice().to_vec(), rank.id));
        let mut specials = Vec::new();
        for token in slice_of(special, special_count) {
            specials.push((token.token.as_str()?.to_owned(), token.id));
        }
        ranked::load(pattern.as_str()?, ranks.collect(), specials)
    })
    .map_or(std::ptr::null_mut(), |tokenizer| Box::into_raw(Box::new(Tokenizer(tokenizer))))
}

#[no_mangle]
pub unsafe extern "C" fn hookline_tokenizer_free(tokenizer: *mut Tokenizer) {
    if !tokenizer.is_null() {
        drop(Box::from_raw(tokenizer));
    }
}

#[no_mangle]
pub unsafe extern "C" fn hookline_tokenizer_encode(
    tokenizer: *const Tokenizer,
    text: Bytes,
    add_special_tokens: bool,
    encoding: *mut Encoding,
    error: *mut Buffer,
) -> bool {
    let encoded = guarded(error, || {
        let encoded = (*tokenizer).0.encode(text.as_str()?, add_special_tokens)?;
        if encoded.begins.len() != encoded.ids.len() || encoded.ends.len() != encoded.ids.len() {
            return Err("has tokens without a place in the text".to_owned());
        }
        Ok(encoded)
    });
    let Some(encoded) = encoded else { return false };
    let size = encoded.ids.len();
    *encoding = Encoding {
        ids: into_raw(encoded.ids),
        begins: into_raw(encoded.begins),
        ends: into_raw(encoded.ends),
        size,
    };
    true
}

#[no_mangle]
pub unsafe extern "C" fn hookline_tokenizer_decode(
    tokenizer: *const Tokenizer,
    ids: *const u32,
    id_count: usize,
    skip_special_tokens: bool,
    text: *mut Buffer,
    error: *mut Buffer,
) -> bool {
    guarded(error, || (*tokenizer).0.decode(slice_of(ids, id_count), skip_special_tokens))
        .map(|decoded| set_buffer(text, decoded.into_bytes()))
        .is_some()
}

#[no_mangle]
pub unsafe extern "C" fn hookline_tokenizer_token(
    tokenizer: *const Tokenizer,
    id: u32,
    token: *mut Buffer,
    is_special: *mut bool,
    error: *mut Buffer,
) -> bool {
    let found = guarded(error, || (*tokenizer).0.token(id).ok_or_else(|| format!("no token has the id {id}")));
    let Some((spelling, special)) = found else { return false };
    *is_special = special;
    set_buffer(token, spelling.into_bytes());
    true
}

#[no_mangle]
pub unsafe extern "C" fn hookline_tokenizer_end_id(tokenizer: *const Tokenizer) -> u64 {
    (*tokenizer).0.end_id()
}

#[no_mangle]
pub unsafe extern "C" fn hookline_buffer_free(buffer: Buffer) {
    free_raw(buffer.data, buffer.size);
}

#[no_mangle]
pub unsafe extern "C" fn hookline_encoding_free(encoding: Encoding) {
    free_raw(encoding.ids, encoding.size);
    free_raw(encoding.begins, encoding.size);
    free_raw(encoding.ends, encoding.size);
}
