//! Checks what a `tokenizer.json` asks for: no setting may make ids random or let a short text take unbounded memory or
//! time, which the library does not limit.

use serde::Deserialize;
use serde_json::Value;

/// The most bytes into which all steps of a normalizer together may turn one. Published tokenizers need at most three
/// (a space becomes `▁`). Unicode's normalization forms, which make a text at most eleven times as long, are
/// not counted.
const MAX_GROWTH: u64 = 8;
/// Published tokenizers put `▁` before a text.
const MAX_PREPENDED_BYTES: u64 = 64;
/// WordPiece looks for the longest token at each place of a word, which takes time with the square of the word's
/// length. Published files say 100.
const MAX_WORD_CHARACTERS: u64 = 1000;

/// The settings that matter here. Vocabularies, which can have tens of megabytes, are skipped.
#[derive(Deserialize)]
struct Settings {
    #[serde(default)]
    normalizer: Value,
    model: Model,
}

#[derive(Deserialize)]
struct Model {
    dropout: Option<f64>,
    max_input_chars_per_word: Option<u64>,
}

/// Returns an error that names the setting if the file must not be used.
pub fn check(json: &[u8]) -> Result<(), String> {
    let settings: Settings = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    if let Some(dropout) = settings.model.dropout.filter(|dropout| *dropout > 0.0) {
        return Err(format!("model.dropout is {dropout}, so that ids would be random; set it to null"));
    }
    if let Some(characters) = settings.model.max_input_chars_per_word.filter(|most| *most > MAX_WORD_CHARACTERS) {
        return Err(format!(
            "model.max_input_chars_per_word is {characters}; at most {MAX_WORD_CHARACTERS} are allowed"
        ));
    }
    if growth(&settings.normalizer) > MAX_GROWTH {
        return Err(format!("normalizer can make a text more than {MAX_GROWTH} times as long"));
    }
    Ok(())
}

fn growth(normalizer: &Value) -> u64 {
    match normalizer["type"].as_str() {
        Some("Sequence") => normalizer["normalizers"]
            .as_array()
            .map(|steps| steps.iter().map(growth).fold(1, u64::saturating_mul))
            .unwrap_or(1),
        Some("Replace") => length(&normalizer["content"]),
        // It comes once before a text, which matters only if it is long.
        Some("Prepend") => length(&normalizer["prepend"]) / MAX_PREPENDED_BYTES + 1,
        // Bytes become characters of at most two bytes.
        Some("ByteLevel") => 2,
        _ => 1,
    }
}

fn length(text: &Value) -> u64 {
    text.as_str().map_or(1, |text| text.len().max(1) as u64)
}
