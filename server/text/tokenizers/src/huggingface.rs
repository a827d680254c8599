//! Reads `tokenizer.json` with Hugging Face's tokenizers.

use std::sync::Once;

use ahash::AHashMap;
use tokenizers::Tokenizer;

use crate::{audit, Encoded, Tokenize};

/// How often Oniguruma may backtrack in one search for a pattern before the text is refused. A search finds one piece
/// of the text, so published patterns backtrack little. This many steps take a tenth of a second.
const MAX_REGEX_RETRIES: std::os::raw::c_ulong = 10_000_000;

struct HuggingFace {
    tokenizer: Tokenizer,
    is_special: AHashMap<u32, bool>,
    end_id: u64,
}

pub fn load(json: &[u8]) -> Result<Box<dyn Tokenize>, String> {
    static LIMITS: Once = Once::new();
    LIMITS.call_once(|| unsafe {
        onig_sys::onig_set_retry_limit_in_match(MAX_REGEX_RETRIES);
        onig_sys::onig_set_retry_limit_in_search(MAX_REGEX_RETRIES);
    });
    audit::check(json)?;
    let mut tokenizer = Tokenizer::from_bytes(json).map_err(|error| error.to_string())?;
    // These are settings of the program that saved the file. Requests decide how long texts are, and nothing is padded.
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|error| error.to_string())?;
    let is_special = tokenizer
        .get_added_tokens_decoder()
        .into_iter()
        .map(|(id, token)| (id, token.special))
        .collect();
    let end_id = tokenizer.get_vocab(true).into_values().max().map_or(0, |id| u64::from(id) + 1);
    Ok(Box::new(HuggingFace { tokenizer, is_special, end_id }))
}

impl Tokenize for HuggingFace {
    fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Encoded, String> {
        let encoding = self
            .tokenizer
            .encode_char_offsets(text, add_special_tokens)
            .map_err(|error| error.to_string())?;
        let offsets = encoding.get_offsets();
        Ok(Encoded {
            ids: encoding.get_ids().to_vec(),
            begins: offsets.iter().map(|offset| offset.0 as u32).collect(),
            ends: offsets.iter().map(|offset| offset.1 as u32).collect(),
        })
    }

    fn decode(&self, ids: &[u32], skip_special_tokens: bool) -> Result<String, String> {
        self.tokenizer.decode(ids, skip_special_tokens).map_err(|error| error.to_string())
    }

    fn token(&self, id: u32) -> Option<(String, bool)> {
        let special = self.is_special.get(&id).copied().unwrap_or(false);
        Some((self.tokenizer.id_to_token(id)?, special))
    }

    fn end_id(&self) -> u64 {
        self.end_id
    }
}
