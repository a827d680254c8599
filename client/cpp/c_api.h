// The C interface of the client, for languages that cannot call C++: captures whose rows land in memory that the caller
// owns. client/python calls it through ctypes; the library fills batches without the interpreter.
//
// A capture is read in batches. The caller submits the buffers of a batch, one for each hook point; a thread of the
// library fills submitted batches in order. While no batch is submitted, the thread waits, and backpressure slows the
// server down. The caller thus chooses how many batches are prefetched by how many it keeps submitted:
//
//   hookline_client* client;
//   hookline_capture* capture;
//   hookline_error error;
//   hookline_client_connect("localhost:7471", 0, -1, &client, &error);
//   hookline_capture_start(client, HOOKLINE_CAPTURE, request, request_bytes, &capture, &error);
//   hookline_capture_started(capture, -1, &started, &started_bytes, &error);   // names, widths, dtype
//   hookline_capture_submit(capture, &batch_a, &error);
//   hookline_capture_submit(capture, &batch_b, &error);
//   while (hookline_capture_wait(capture, -1, rows, &error) == HOOKLINE_OK) {  // batch_a, then batch_b, ...
//     use the oldest batch; submit another
//   }
//   hookline_capture_summary(capture, &summary, &summary_bytes);
//   hookline_capture_free(capture);
//   hookline_client_free(client);
//
// Messages of hookline.v1 pass in their protobuf encoding. Strings are UTF-8. Functions that can fail return one of the
// results below and fill `error` (never NULL) when they return HOOKLINE_ERROR. Every function may be called from any
// thread, but for one capture only one thread at a time may call each of hookline_capture_wait, hookline_capture_submit
// and hookline_capture_write_tokens. No function may run while its handle is being freed.
#ifndef HOOKLINE_CLIENT_CPP_C_API_H_
#define HOOKLINE_CLIENT_CPP_C_API_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define HOOKLINE_EXPORT __attribute__((visibility("default")))

// Increases whenever something below changes its meaning; additions do not change it.
#define HOOKLINE_ABI_VERSION 3

// Results.
#define HOOKLINE_OK 0
#define HOOKLINE_END 1      // the capture has ended; no more rows come, and no more tokens are taken
#define HOOKLINE_TIMEOUT 2  // nothing happened yet
#define HOOKLINE_ERROR 3    // see `error`

// Methods that answer with a stream of CaptureResponse, and the type of their request.
#define HOOKLINE_CAPTURE 0         // CaptureService.Capture: CaptureRequest
#define HOOKLINE_CAPTURE_STREAM 1  // CaptureService.CaptureStream: CaptureRequest without a source, then tokens
#define HOOKLINE_READ_RECORDING 2  // RecordingService.ReadRecording: ReadRecordingRequest

typedef struct hookline_client hookline_client;
typedef struct hookline_capture hookline_capture;

// Describes an error. Texts end with a zero byte; longer ones are cut.
typedef struct hookline_error {
  int32_t code;            // gRPC's status code, 1 to 16
  char field[508];         // the request's field at fault, "" if none was named
  char message[3576];      // the server's message, or the library's
  int64_t retry_delay_ms;  // the time after which the server says to try again; 0: it does not say
} hookline_error;

// The buffers of one batch. They belong to the library from hookline_capture_submit until hookline_capture_wait returns
// the batch or hookline_capture_free returns; the struct itself and the array `data` are read during the call only.
typedef struct hookline_batch {
  int64_t rows;  // rows that each buffer has room for, at least 1
  void* const*
      data;  // for each hook point, in the order of `started`: rows as ActivationChunk.data has them (rows * width
             // values of the dtype), row-major; room for fewer rows where its budget ends, NULL where none is left
  int64_t* sequence;   // provenance columns of `rows` entries; all three or none (NULL). They belong to the hook
  int32_t* position;   // point with the most rows in the batch; the others' are a prefix. The request must have
  uint32_t* token_id;  // asked for provenance.
} hookline_batch;

// Returns the HOOKLINE_ABI_VERSION of the library that was loaded.
HOOKLINE_EXPORT int32_t hookline_abi_version(void);

// Opens a channel to `address` (host:port, no TLS unless it begins with grpcs://); nothing is sent yet.
// `max_receive_bytes`: the largest message to accept, 0 for 4 MiB, at most 16 MiB (a request's `max_message_bytes`
// above 4 MiB needs as much). `shared_memory_bytes`: the size of the memory through which each capture receives values
// from a server on this machine, a multiple of 4096 from 64 KiB to 64 MiB; -1 means 8 MiB, and 0 that values come over
// the wire. Free the result.
HOOKLINE_EXPORT int32_t hookline_client_connect(const char* address, int64_t max_receive_bytes,
                                                int64_t shared_memory_bytes, hookline_client** client,
                                                hookline_error* error);
// The settings for talking to a server. Strings are UTF-8; NULL is the same as "".
typedef struct hookline_security {
  int32_t tls;            // not 0: TLS, also without any of the paths
  const char* ca_path;    // PEM files: the authority of the server's certificate; "": those of this machine
  const char* cert_path;  // a certificate to show to the server, and its key
  const char* key_path;
  const char* token;  // says who the client is; only with TLS, or if the server is on this machine
} hookline_security;

// Does the same with TLS or a token. The struct is read during the call only.
HOOKLINE_EXPORT int32_t hookline_client_connect_securely(const char* address, int64_t max_receive_bytes,
                                                         int64_t shared_memory_bytes, const hookline_security* security,
                                                         hookline_client** client, hookline_error* error);
// Captures of the client may outlive it. NULL does nothing.
HOOKLINE_EXPORT void hookline_client_free(hookline_client* client);

// Starts a capture with one of the methods above. Returns at once: the first call that waits reports what the server
// objects to. Free the result.
HOOKLINE_EXPORT int32_t hookline_capture_start(hookline_client* client, int32_t method, const void* request,
                                               size_t request_bytes, hookline_capture** capture, hookline_error* error);

// Waits for the server's CaptureStarted. `*bytes` stays valid until the capture is freed or resumed. A `timeout_ms`
// below 0 means for ever, here and below. Returns HOOKLINE_OK, HOOKLINE_TIMEOUT or HOOKLINE_ERROR.
HOOKLINE_EXPORT int32_t hookline_capture_started(hookline_capture* capture, int64_t timeout_ms, const void** message,
                                                 size_t* bytes, hookline_error* error);

// Hands over the buffers of one more batch, after hookline_capture_started. Returns HOOKLINE_OK or HOOKLINE_ERROR
// (INVALID_ARGUMENT: the batch contradicts the capture). At most 1024 batches may be submitted and not yet waited
// for (RESOURCE_EXHAUSTED).
HOOKLINE_EXPORT int32_t hookline_capture_submit(hookline_capture* capture, const hookline_batch* batch,
                                                hookline_error* error);

// Waits until the oldest submitted batch is finished: each hook point's buffer is full, or its budget is reached, or
// the capture has ended. `rows` (one for each hook point) says how many rows each buffer holds.
//   HOOKLINE_OK       the batch belongs to the caller again. It holds at least one row.
//   HOOKLINE_END      the capture has ended well and no submitted batch holds a row; all belong to the caller again.
//   HOOKLINE_TIMEOUT  the batch is not finished yet.
//   HOOKLINE_ERROR    the capture broke (code UNAVAILABLE: hookline_capture_resume continues it). All batches finished
//                     before it have been returned; `rows` says what the oldest one holds so far. Nothing is written to
//                     submitted batches until a resume; if the caller does not resume, they belong to it again.
//                     FAILED_PRECONDITION: no batch is submitted, and rows are still to come.
HOOKLINE_EXPORT int32_t hookline_capture_wait(hookline_capture* capture, int64_t timeout_ms, int64_t* rows,
                                              hookline_error* error);

// Counts the batches that were submitted, and those that hookline_capture_wait has returned (HOOKLINE_OK), for a caller
// that was interrupted before it saw a result.
HOOKLINE_EXPORT void hookline_capture_progress(hookline_capture* capture, int64_t* submitted, int64_t* returned);

// Gives the model's spelling of a token of which rows have arrived, if the request asked for provenance and the model
// has a tokenizer: `*bytes` bytes of UTF-8, without a zero byte at their end, valid until the capture is freed. Returns
// HOOKLINE_OK, or HOOKLINE_TIMEOUT if no text of the token has arrived.
HOOKLINE_EXPORT int32_t hookline_capture_token_text(hookline_capture* capture, uint32_t token_id, const void** text,
                                                    size_t* bytes);

// Copies at most `capacity` bytes of the resume token of the last message received and returns the token's size in
// bytes, which is 0 before the first message. If `token` is NULL, nothing is copied. The token continues exactly after
// the rows that the library holds, so it is meant for the request given to hookline_capture_resume.
HOOKLINE_EXPORT size_t hookline_capture_resume_token(hookline_capture* capture, void* token, size_t capacity);

// Continues a capture after HOOKLINE_ERROR from a wait: calls the server again on the same channel with `request`,
// which is the first request with its `resume_token` set to the last one. Submitted batches are filled further from
// where they stood: no row comes twice, and none is missing. If the server now grants other hook points, widths, dtype
// or weights, the next wait fails (FAILED_PRECONDITION). For HOOKLINE_CAPTURE_STREAM, write the tokens again from
// `next_sequence` of the new CaptureStarted.
HOOKLINE_EXPORT int32_t hookline_capture_resume(hookline_capture* capture, const void* request, size_t request_bytes,
                                                hookline_error* error);

// For HOOKLINE_CAPTURE_STREAM: sends sequences as one message. `lengths` has one entry for each sequence; `ids` holds
// the sequences one after another. Keep a message below the server's receive limit (4 MiB; an id takes up to 5 bytes).
// Blocks while the server has enough to do; hookline_capture_cancel ends that. Returns HOOKLINE_OK, or HOOKLINE_END if
// the call is over (hookline_capture_wait says how) and nothing more is needed.
HOOKLINE_EXPORT int32_t hookline_capture_write_tokens(hookline_capture* capture, const uint32_t* ids,
                                                      const int64_t* lengths, int64_t sequences, hookline_error* error);
// For HOOKLINE_CAPTURE_STREAM: says that no more sequences will come.
HOOKLINE_EXPORT void hookline_capture_finish_tokens(hookline_capture* capture);

// Returns the milliseconds to wait before reconnect number `attempt`, counted from 1 since the last row, by the policy
// that all of Hookline's clients follow; -1 means to give up.
HOOKLINE_EXPORT int64_t hookline_reconnect_delay_ms(int32_t attempt);

// Gives the CaptureSummary once the server has sent it, which is before the last wait returns. Returns HOOKLINE_OK, or
// HOOKLINE_TIMEOUT if it has not arrived. After a resume its counts, times and statistics include those of earlier
// calls that sent one (`statistics_rows` says how many rows that covers). `*message` stays valid until the capture is
// freed or resumed.
HOOKLINE_EXPORT int32_t hookline_capture_summary(hookline_capture* capture, const void** message, size_t* bytes);

// Ends the call: waiting functions return with CANCELLED soon. Idempotent.
HOOKLINE_EXPORT void hookline_capture_cancel(hookline_capture* capture);

// Cancels, and returns when nothing is written to submitted buffers any more. NULL does nothing.
HOOKLINE_EXPORT void hookline_capture_free(hookline_capture* capture);

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // HOOKLINE_CLIENT_CPP_C_API_H_
