// Tells whether numbers are finite: times zero these are zero, while infinities and NaN become NaN,
// which stays NaN whatever bits are added. One instruction set's version, included in its
// namespace.
#pragma once

// Adds the bits of zero times a word's numbers to `check`, which starts as zero.
template <class Math>
inline Vec check_finite(Vec check, Vec word) {
  return bit_or(check, Math::madd(zero(), word, zero()));
}

template <class Math>
inline Vec check_finite(Vec check, const Vec (&words)[kLanes]) {
  for (const Vec& word : words) check = check_finite<Math>(check, word);
  return check;
}

// Whether all numbers that `check` has seen are finite.
inline bool passed(Vec check) {
  float lanes[kLanes];
  store(lanes, check);
  return std::all_of(lanes, lanes + kLanes, [](float lane) { return lane == 0; });
}
