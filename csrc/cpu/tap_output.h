// How sums of destination channels are finished and written; included in an instruction set's
// namespace.
#pragma once

// Vectors of float32 in a cache line.
constexpr int64_t kLineVectors = kLineBytes / (kLanes * static_cast<int64_t>(sizeof(float)));

// What is done to n sums of destination channels, from `channel` on, before they are written.
template <class E>
class Epilogue {
 public:
  Epilogue(const TapConv& c, int64_t channel, int n)
      : residual_(static_cast<const E*>(c.residual)), n_(n), relu_(c.relu) {
    bias_ = c.bias ? load_elements(static_cast<const E*>(c.bias) + channel, n) : zero();
  }

  // Of the pixel whose first one lies at element `at`.
  Vec operator()(Vec sums, int64_t at) const {
    Vec out = add(sums, bias_);
    if (residual_) out = add(out, load_elements(residual_ + at, n_));
    return relu_ ? relu(out) : out;
  }

 private:
  Vec bias_;
  const E* residual_;
  int n_;
  bool relu_;
};

// Whether results go past the caches, because these cannot hold them: nothing is read then to be
// overwritten. That takes whole lines, in each of the plan's chunks.
template <class S>
bool streams(const TapConv& c, const TapPlan& p) {
  constexpr int64_t kLeastBytes = 8 << 20;
  const int64_t bytes = c.batch * c.dst_rows * c.dst_cols * c.dst_channels() * sizeof(float);
  const int64_t chunk_channels = p.chunks > 1 ? p.chunk_units * S::unit_dst(c) : c.dst_channels();
  return kStreams && c.element == Element::f32 && bytes > kLeastBytes &&
         S::unit_dst(c) % kLanes == 0 && chunk_channels % (kLineVectors * kLanes) == 0 &&
         c.dst_channels() % (kLineVectors * kLanes) == 0 &&
         reinterpret_cast<uintptr_t>(c.dst) % kLineBytes == 0;
}

// Writes vectors of channels past the caches: a pixel's in their order, of PLACES pixels in turn.
template <int PLACES>
class LineStream {
 public:
  // The pixel's vector of channels from `channel` on, which belongs at `to`.
  void put(float* to, int64_t channel, int64_t place, Vec v) {
    const int64_t part = channel / kLanes % kLineVectors;
    float* line = lines_ + place * (kLineVectors - 1) * kLanes;
    if (part < kLineVectors - 1) {
      store(line + part * kLanes, v);
      return;
    }
    for (int64_t i = 0; i < part; ++i) stream(to + (i - part) * kLanes, load(line + i * kLanes));
    stream(to, v);
  }
  void put(uint16_t*, int64_t, int64_t, Vec) {}  // float32 alone goes this way

 private:
  // Of lines that wait for their last vector.
  alignas(kLineBytes) float lines_[PLACES * (kLineVectors - 1) * kLanes + 1];
};
