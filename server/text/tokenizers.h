// The C interface of the Rust library in tokenizers/: Hugging Face's tokenizers and OpenAI's tiktoken. Only library.h
// includes it; the rest of the server uses Tokenizer.
//
// All functions may be called from any thread; a tokenizer is immutable. A function that fails returns null or false
// and sets `*error` to a sentence, which the caller frees; nothing else is set then. No Rust panic leaves a function.
#ifndef HOOKLINE_SERVER_TEXT_TOKENIZERS_H_
#define HOOKLINE_SERVER_TEXT_TOKENIZERS_H_

#include <cstddef>
#include <cstdint>

extern "C" {

struct hookline_tokenizer;

// Borrowed for the duration of the call.
struct hookline_bytes {
  const uint8_t* data;
  size_t size;
};

// Owned by the caller until hookline_buffer_free.
struct hookline_buffer {
  uint8_t* data;
  size_t size;
};

// `size` ids and for each the characters of the text that it covers, [begin, end). Owned by the caller until
// hookline_encoding_free.
struct hookline_encoding {
  uint32_t* ids;
  uint32_t* begins;
  uint32_t* ends;
  size_t size;
};

struct hookline_rank {
  hookline_bytes token;
  uint32_t id;
};

// Makes a tokenizer from the contents of a tokenizer.json. Its padding and truncation are ignored.
hookline_tokenizer* hookline_tokenizer_from_json(hookline_bytes json, hookline_buffer* error);

// Makes a tokenizer from the parts of a tiktoken encoding.
hookline_tokenizer* hookline_tokenizer_from_ranks(hookline_bytes pattern, const hookline_rank* ranks, size_t rank_count,
                                                  const hookline_rank* special, size_t special_count,
                                                  hookline_buffer* error);

void hookline_tokenizer_free(hookline_tokenizer* tokenizer);

// `text` is UTF-8. `add_special_tokens` adds those of the file's post-processor; a tiktoken encoding has none.
bool hookline_tokenizer_encode(const hookline_tokenizer* tokenizer, hookline_bytes text, bool add_special_tokens,
                               hookline_encoding* encoding, hookline_buffer* error);

// `text` becomes UTF-8, whatever the tokens hold. Ids without a token are left out.
bool hookline_tokenizer_decode(const hookline_tokenizer* tokenizer, const uint32_t* ids, size_t id_count,
                               bool skip_special_tokens, hookline_buffer* text, hookline_buffer* error);

// Gives the spelling of a token as UTF-8, and whether it is special. Fails for an id without a token.
bool hookline_tokenizer_token(const hookline_tokenizer* tokenizer, uint32_t id, hookline_buffer* token,
                              bool* is_special, hookline_buffer* error);

// Returns one more than the largest id; 0 without tokens.
uint64_t hookline_tokenizer_end_id(const hookline_tokenizer* tokenizer);

void hookline_buffer_free(hookline_buffer buffer);
void hookline_encoding_free(hookline_encoding encoding);

}  // extern "C"

#endif  // HOOKLINE_SERVER_TEXT_TOKENIZERS_H_
