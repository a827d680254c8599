// Arithmetic on sizes from a file or a peer: formulas are written as usual, and a formula has no value if any step of
// it leaves the range of int64_t.
//
//   const std::optional<int64_t> bytes = (CheckedInt64(rows) * width * 4 + header_bytes).value();
//   if (!bytes) return absl::DataLossError("the rows need more bytes than any file has");
//   if (!RangeFits(offset, *bytes, file_bytes)) return absl::DataLossError("the rows reach past the end of the file");
#ifndef HOOKLINE_SERVER_BASE_CHECKED_MATH_H_
#define HOOKLINE_SERVER_BASE_CHECKED_MATH_H_

#include <cstdint>
#include <optional>
#include <type_traits>

namespace hookline {

// An int64_t, or "out of range", which every operation passes on.
class CheckedInt64 {
 public:
  // Accepts any integer. An unsigned value above the range of int64_t is out of range.
  template <typename Integer, std::enable_if_t<std::is_integral_v<Integer>, int> = 0>
  constexpr CheckedInt64(Integer value) {  // NOLINT(google-explicit-constructor): so that formulas read as usual
    int64_t number = 0;
    if (!__builtin_add_overflow(value, Integer{0}, &number)) value_ = number;
  }

  // Returns the value of the formula; nullopt if any step of it left the range.
  constexpr std::optional<int64_t> value() const { return value_; }

  friend constexpr CheckedInt64 operator+(CheckedInt64 a, CheckedInt64 b) {
    int64_t sum = 0;
    if (!a.value_ || !b.value_ || __builtin_add_overflow(*a.value_, *b.value_, &sum)) return CheckedInt64();
    return sum;
  }
  friend constexpr CheckedInt64 operator-(CheckedInt64 a, CheckedInt64 b) {
    int64_t difference = 0;
    if (!a.value_ || !b.value_ || __builtin_sub_overflow(*a.value_, *b.value_, &difference)) return CheckedInt64();
    return difference;
  }
  friend constexpr CheckedInt64 operator*(CheckedInt64 a, CheckedInt64 b) {
    int64_t product = 0;
    if (!a.value_ || !b.value_ || __builtin_mul_overflow(*a.value_, *b.value_, &product)) return CheckedInt64();
    return product;
  }
  constexpr CheckedInt64& operator+=(CheckedInt64 other) { return *this = *this + other; }
  constexpr CheckedInt64& operator-=(CheckedInt64 other) { return *this = *this - other; }
  constexpr CheckedInt64& operator*=(CheckedInt64 other) { return *this = *this * other; }

 private:
  constexpr CheckedInt64() = default;

  std::optional<int64_t> value_;
};

// Returns whether `length` bytes from `offset` lie within `size` bytes. Negative numbers never do.
constexpr bool RangeFits(CheckedInt64 offset, CheckedInt64 length, CheckedInt64 size) {
  const std::optional<int64_t> end = (offset + length).value();
  return end && size.value() && *offset.value() >= 0 && *length.value() >= 0 && *end <= *size.value();
}

}  // namespace hookline

#endif  // HOOKLINE_SERVER_BASE_CHECKED_MATH_H_
