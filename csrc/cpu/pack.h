// Turns the weights of one vector of destination channels from torch's layout into the kernels'
// [tap][source word][lane], with zeros where there is no channel; one instruction set's version,
// included in its namespace. It reads along whatever lies side by side in memory.
#pragma once

// Inlined: a vector's store may change any memory, so what is not in registers is read again.
template <class S>
class WeightPacker {
  using E = typename S::E;
  using Math = typename S::Math;

 public:
  WeightPacker(const TapConv& c, int64_t unit, int64_t vector)
      : c_(c), tap_step_(S::tap_words(c) * kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      int64_t group = unit, dst = vector * kLanes + lane;
      bool real = dst < c.dst_width;
      if constexpr (S::kIsLane) {
        const int64_t channel = unit * kLanes + lane;
        group = channel / c.dst_width;
        dst = channel % c.dst_width;
        real = channel < c.dst_channels();
      }
      rows_[lane] =
          real ? static_cast<const E*>(c.weight) + group * c.weight_group + dst * c.weight_dst
               : nullptr;
      lanes_ += real;
    }
  }

  // Returns what `passed` tells by whether all weights are finite.
  [[gnu::always_inline]] Vec pack(float* to) const {
    if (c_.weight_dst == 1) return pack_lanes(to);
    const bool pairs_fit = c_.src_width % Math::kPerWord == 0;
    if (c_.weight_src == 1 && pairs_fit) return pack_sources(to);
#if RNK_BF16_DOT
    if constexpr (Math::kPerWord == 2)
      if (c_.taps() == kPairTaps && c_.weight_src == kPairTaps && pairs_fit) return pack_pairs(to);
#endif
    return pack_taps(to);  // of a single tap, where sources lie side by side all the same
  }

 private:
  // Destination channels side by side (dgrad, channels_last): a vector of lanes as it lies there.
  [[gnu::always_inline]] Vec pack_lanes(float* to) const {
    Vec check = zero();
    for (int64_t t = 0; t < c_.taps(); ++t)
      for (int64_t s = 0; s < c_.src_width; s += Math::kPerWord, to += kLanes) {
        const int64_t offset = s * c_.weight_src + t * c_.weight_tap;
        Vec word = lanes_at(offset);
#if RNK_BF16_DOT
        if constexpr (Math::kPerWord == 2)
          word = pair_words(word, s + 1 < c_.src_width ? lanes_at(offset + c_.weight_src) : zero());
#endif
        store(to, word);
        check = check_finite<Math>(check, word);
      }
    return check;
  }

  [[gnu::always_inline]] Vec lanes_at(int64_t offset) const {
    if constexpr (!S::kIsLane) return load_elements(rows_[0] + offset, lanes_);
    E values[kLanes] = {};  // the lanes of several groups
    for (int lane = 0; lane < lanes_; ++lane) values[lane] = rows_[lane][offset];
    return load_elements(values, kLanes);
  }

  // Source channels side by side (fprop, channels_last), an even number of them where in pairs.
  [[gnu::always_inline]] Vec pack_sources(float* to) const {
    Vec check = zero();
    using Word = std::conditional_t<Math::kPerWord == 2, float, E>;
    const int64_t words = S::tap_words(c_), ahead = kLanes * c_.weight_dst;
    for (int64_t t = 0; t < c_.taps(); ++t)
      for (int64_t w = 0; w < words; w += kLanes) {
        const int n = static_cast<int>(std::min<int64_t>(kLanes, words - w));
        Vec columns[kLanes];
        load_rows<Word>(t * c_.weight_tap + w * Math::kPerWord, n, ahead, columns);
        check = check_finite<Math>(check, columns);
        transpose(columns);
        for (int i = 0; i < n; ++i) store(to + t * tap_step_ + (w + i) * kLanes, columns[i]);
      }
    return check;
  }

  // Taps side by side (contiguous weights); in fprop all source channels follow each other, too.
  [[gnu::always_inline]] Vec pack_taps(float* to) const {
    Vec check = zero();
    const int64_t taps = c_.taps();
    const bool runs_on = c_.weight_src == taps && Math::kPerWord == 1;
    const int64_t sources = runs_on ? c_.src_width : 1;
    const int64_t ahead = c_.weight_src == taps ? kLanes * c_.weight_dst : 8 * c_.weight_src;
    for (int64_t s = 0; s < c_.src_width; s += sources * Math::kPerWord)
      for (int64_t k = 0; k < sources * taps; k += kLanes) {
        const int n = static_cast<int>(std::min<int64_t>(kLanes, sources * taps - k));
        Vec columns[kLanes];
        load_rows<E>(s * c_.weight_src + k, n, ahead, columns);
#if RNK_BF16_DOT
        if constexpr (Math::kPerWord == 2) {
          Vec odd[kLanes];
          for (Vec& row : odd) row = zero();
          if (s + 1 < c_.src_width) load_rows<E>((s + 1) * c_.weight_src + k, n, ahead, odd);
          for (int lane = 0; lane < kLanes; ++lane)
            columns[lane] = pair_words(columns[lane], odd[lane]);
        }
#endif
        check = check_finite<Math>(check, columns);
        transpose(columns);
        int64_t tap = k % taps, word = s / Math::kPerWord + k / taps;
        for (int i = 0; i < n; ++i) {
          store(to + tap * tap_step_ + word * kLanes, columns[i]);
          if (++tap < taps) continue;
          tap = 0;
          ++word;
        }
      }
    return check;
  }

#if RNK_BF16_DOT
  // Pairs of sources with all their taps side by side (contiguous 3x3 weights in fprop).
  [[gnu::always_inline]] Vec pack_pairs(float* to) const {
    Vec check = zero();
    const int64_t words = c_.src_width / 2 * kPairTaps, ahead = kLanes * c_.weight_dst;
    for (int64_t k = 0; k < words; k += kLanes) {
      int64_t word = k / kPairTaps, tap = k % kPairTaps;
      const int64_t offset = word * 2 * kPairTaps;
      const PairGather gather(tap, 2 * words - offset);
      Vec columns[kLanes];
      for (int lane = 0; lane < kLanes; ++lane) {
        columns[lane] = zero();
        if (!rows_[lane]) continue;
        const E* from = rows_[lane] + offset;
        __builtin_prefetch(from + ahead);
        columns[lane] = gather(from);
      }
      check = check_finite<Math>(check, columns);
      transpose(columns);
      const int n = static_cast<int>(std::min<int64_t>(kLanes, words - k));
      for (int i = 0; i < n; ++i) {
        store(to + tap * tap_step_ + word * kLanes, columns[i]);
        if (++tap < kPairTaps) continue;
        tap = 0;
        ++word;
      }
    }
    return check;
  }
#endif

  // n words of every row from element `offset` on, zeros where there is no row. What lies `ahead`
  // is read soon: too many streams for the hardware to follow.
  template <class Word>
  [[gnu::always_inline]] void load_rows(int64_t offset, int n, int64_t ahead,
                                        Vec (&values)[kLanes]) const {
    for (int lane = 0; lane < kLanes; ++lane) {
      values[lane] = zero();
      if (!rows_[lane]) continue;
      const E* from = rows_[lane] + offset;
      __builtin_prefetch(from + ahead);
      values[lane] = load_elements(reinterpret_cast<const Word*>(from), n);
    }
  }

  const TapConv& c_;
  int64_t tap_step_;
  const E* rows_[kLanes];
  int lanes_ = 0;  // rows there are; they come first
};
