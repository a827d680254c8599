//! Runs tiktoken's encodings, such as the one in nanochat's `tokenizer.pkl`, with tiktoken-rs.

use rustc_hash::FxHashMap;
use tiktoken_rs::CoreBPE;

use crate::{Encoded, Tokenize};

struct Ranked {
    bpe: CoreBPE,
    bytes: FxHashMap<u32, Vec<u8>>,
    special: FxHashMap<u32, String>,
    end_id: u64,
}

pub fn load(
    pattern: &str,
    ranks: Vec<(Vec<u8>, u32)>,
    special: Vec<(String, u32)>,
) -> Result<Box<dyn Tokenize>, String> {
    let bytes: FxHashMap<u32, Vec<u8>> = ranks.iter().map(|(token, id)| (*id, token.clone())).collect();
    let specials: FxHashMap<u32, String> = special.iter().map(|(token, id)| (*id, token.clone())).collect();
    let encoder: FxHashMap<Vec<u8>, u32> = ranks.into_iter().collect();
    let special_encoder: FxHashMap<String, u32> = special.into_iter().collect();
    if let Some(byte) = (0..=255u8).find(|byte| !encoder.contains_key(&[*byte][..])) {
        return Err(format!("has no token for the byte {byte}"));
    }
    if bytes.len() != encoder.len()
        || specials.len() != special_encoder.len()
        || specials.keys().any(|id| bytes.contains_key(id))
    {
        return Err("gives an id to two tokens, or a token two ids".to_owned());
    }
    let end_id = bytes.keys().chain(specials.keys()).max().map_or(0, |id| u64::from(*id) + 1);
    let bpe = CoreBPE::new(encoder, special_encoder, pattern).map_err(|error| error.to_string())?;
    Ok(Box::new(Ranked { bpe, bytes, special: specials, end_id }))
}

impl Ranked {
    /// Finds the characters that each token covers. A token that begins or ends inside a character covers all of it, as
    /// with Hugging Face's byte-level tokenizers.
    fn locate(&self, text: &str, ids: Vec<u32>) -> Result<Encoded, String> {
        let mut encoded = Encoded::default();
        let text = text.as_bytes();
        let starts_character = |byte: u8| byte & 0xC0 != 0x80;
        let mut at = 0;
        // The number of characters that begin before `at`.
        let mut before = 0u32;
        for id in &ids {
            let end = at + self.bytes[id].len();
            // A pattern that leaves out parts of the text would shift all that follows.
            if text.get(at..end) != Some(&self.bytes[id][..]) {
                return Err("its pattern leaves out a part of the text".to_owned());
            }
            let begins = text[at..end].iter().filter(|byte| starts_character(**byte)).count() as u32;
            encoded.begins.push(if starts_character(text[at]) { before } else { before - 1 });
            before += begins;
            encoded.ends.push(before);
            at = end;
        }
        if at != text.len() {
            return Err("its pattern leaves out a part of the text".to_owned());
        }
        encoded.ids = ids;
        Ok(encoded)
    }
}

impl Tokenize for Ranked {
    /// An encoding adds no special tokens by itself, and in nanochat a text that spells a special token is
    /// ordinary text.
    fn encode(&self, text: &str, _add_special_tokens: bool) -> Result<Encoded, String> {
        self.locate(text, self.bpe.encode_ordinary(text))
    }

    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, String> {
        let mut bytes = Vec::new();
        for id in ids {
            match (self.bytes.get(id), self.special.get(id)) {
                (Some(token), _) => bytes.extend(token),
                (None, Some(token)) if !skip_special_tokens => bytes.extend(token.as_bytes()),
                _ => {}
            }
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn token(&self, id: u32) -> Option<(String, bool)> {
        if let Some(token) = self.special.get(&id) {
            return Some((token.clone(), true));
        }
        self.bytes.get(&id).map(|token| (String::from_utf8_lossy(token).into_owned(), false))
    }

    fn end_id(&self) -> u64 {
        self.end_id
    }
}
