#include "nms.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "common.h"
#include "parallel.h"

namespace mb::cpu {
namespace {

constexpr int64_t CHUNK = 64;    // boxes compared between two looks whether one suppresses
constexpr int64_t BLOCK = 256;   // candidates that are compared with all kept boxes in parallel
constexpr int64_t GRAIN = 1 << 21;  // comparisons that are worth a thread: some 0.5 ms, less is lost on a busy machine

template <typename T>
struct Box {
  T x1, y1, x2, y2, area;
};

template <typename T>
Box<T> read_box(const T* box, T extra) {
  return {box[0], box[1], box[2], box[3], (box[2] - box[0] + extra) * (box[3] - box[1] + extra)};
}

// Boxes as one array per coordinate, filled up with NaN, which suppresses nothing, to whole chunks.
template <typename T>
struct Boxes {
  int64_t count = 0;
  std::vector<T> x1, y1, x2, y2, area;

  void clear() {
    count = 0;
    for (auto* side : {&x1, &y1, &x2, &y2, &area}) {
      side->clear();
    }
  }

  void add(const Box<T>& box) {
    if (count % CHUNK == 0) {
      for (auto* side : {&x1, &y1, &x2, &y2, &area}) {
        side->resize(count + CHUNK, std::numeric_limits<T>::quiet_NaN());
      }
    }
    x1[count] = box.x1;
    y1[count] = box.y1;
    x2[count] = box.x2;
    y2[count] = box.y2;
    area[count] = box.area;
    ++count;
  }
};

// The shared area of two boxes; comparisons are written so that they become the minimum and maximum instructions.
template <typename T>
inline __attribute__((always_inline)) T shared(
    const Box<T>& a, T x1, T y1, T x2, T y2, T extra) {
  const T left = a.x1 > x1 ? a.x1 : x1, top = a.y1 > y1 ? a.y1 : y1;
  const T right = a.x2 < x2 ? a.x2 : x2, bottom = a.y2 < y2 ? a.y2 : y2;
  const T width = right - left + extra, height = bottom - top + extra;
  return (width > 0 ? width : T(0)) * (height > 0 ? height : T(0));
}

// Whether one of the boxes [0, count) suppresses `box`. The quotient is the one of the reference: a product in its place
// can differ in the last bit.
template <typename T>
inline __attribute__((always_inline)) bool any_over(
    int64_t count, const T* x1, const T* y1, const T* x2, const T* y2, const T* area, Box<T> box, T threshold, T extra) {
  for (int64_t start = 0; start < count; start += CHUNK) {
    int found = 0;
    for (int64_t i = start; i < start + CHUNK; ++i) {
      const T inter = shared(box, x1[i], y1[i], x2[i], y2[i], extra);
      found |= inter / (box.area + area[i] - inter) > threshold;
    }
    if (found) {
      return true;
    }
  }
  return false;
}

MB_CLONES bool suppressed(int64_t count, const float* x1, const float* y1, const float* x2, const float* y2,
                          const float* area, const Box<float>& box, float threshold, float extra) {
  return any_over(count, x1, y1, x2, y2, area, box, threshold, extra);
}

MB_CLONES bool suppressed(int64_t count, const double* x1, const double* y1, const double* x2, const double* y2,
                          const double* area, const Box<double>& box, double threshold, double extra) {
  return any_over(count, x1, y1, x2, y2, area, box, threshold, extra);
}

template <typename T>
bool suppressed(const Boxes<T>& kept, const Box<T>& box, T threshold, T extra) {
  return suppressed(
      kept.count, kept.x1.data(), kept.y1.data(), kept.x2.data(), kept.y2.data(), kept.area.data(), box, threshold,
      extra);
}

// Decides the boxes order[0 .. n), best first: those of a block are compared with the boxes kept so far in parallel, and
// then, one after the other, with those kept of the block itself.
template <typename T>
void decide(
    int64_t n, const int64_t* order, const T* boxes, T threshold, T extra, std::vector<uint8_t>& keep) {
  Boxes<T> kept, fresh;
  uint8_t open[BLOCK];
  for (int64_t start = 0; start < n; start += BLOCK) {
    const int64_t size = std::min(BLOCK, n - start);
    parallel_for(0, size, std::max<int64_t>(1, GRAIN / (kept.count + 1)), [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        open[i] = !suppressed(kept, read_box(boxes + 4 * order[start + i], extra), threshold, extra);
      }
    });
    fresh.clear();
    for (int64_t i = 0; i < size; ++i) {
      const Box<T> box = read_box(boxes + 4 * order[start + i], extra);
      if (open[i] && !suppressed(fresh, box, threshold, extra)) {
        keep[order[start + i]] = 1;
        fresh.add(box);
        kept.add(box);
      }
    }
  }
}

// Indices by falling score; equal scores in index order, NaN first, as torch sorts.
template <typename T>
std::vector<int64_t> by_score(int64_t n, const T* scores) {
  struct Item {
    T score;
    int64_t index;
  };
  std::vector<Item> items(n);
  for (int64_t i = 0; i < n; ++i) {
    items[i] = {std::isnan(scores[i]) ? std::numeric_limits<T>::infinity() : scores[i], i};
  }
  const bool plain = std::none_of(scores, scores + n, [](T score) { return std::isnan(score); });
  std::sort(items.begin(), items.end(), [&](const Item& a, const Item& b) {
    if (a.score != b.score) {
      return a.score > b.score;
    }
    if (!plain && std::isnan(scores[a.index]) != std::isnan(scores[b.index])) {
      return std::isnan(scores[a.index]);
    }
    return a.index < b.index;
  });
  std::vector<int64_t> order(n);
  for (int64_t i = 0; i < n; ++i) {
    order[i] = items[i].index;
  }
  return order;
}

}  // namespace

template <typename T>
std::vector<int64_t> nms(
    int64_t n, const T* boxes, const T* scores, const int64_t* labels, T threshold, bool plus_one) {
  const std::vector<int64_t> order = by_score(n, scores);
  std::vector<uint8_t> keep(n, 0);
  if (labels == nullptr) {
    decide(n, order.data(), boxes, threshold, T(plus_one), keep);
  } else {
    std::vector<int64_t> grouped = order;
    std::stable_sort(grouped.begin(), grouped.end(), [&](int64_t a, int64_t b) { return labels[a] < labels[b]; });
    std::vector<int64_t> starts;
    for (int64_t i = 0; i < n; ++i) {
      if (i == 0 || labels[grouped[i]] != labels[grouped[i - 1]]) {
        starts.push_back(i);
      }
    }
    const int64_t groups = starts.size();
    starts.push_back(n);
    auto run = [&](int64_t first, int64_t last) {
      for (int64_t g = first; g < last; ++g) {
        decide(starts[g + 1] - starts[g], grouped.data() + starts[g], boxes, threshold, T(plus_one), keep);
      }
    };
    if (groups < 2 * threads()) {
      run(0, groups);  // few labels: the threads share each
    } else {
      parallel_for(0, groups, std::max<int64_t>(1, groups * BLOCK / n), run);
    }
  }
  std::vector<int64_t> kept;
  for (const int64_t i : order) {
    if (keep[i]) {
      kept.push_back(i);
    }
  }
  return kept;
}

template <typename T>
void soft_nms(
    int64_t n, const T* boxes, const T* scores, T score_threshold, T sigma, std::vector<int64_t>& kept,
    std::vector<T>& kept_scores) {
  struct Item {
    Box<T> box;
    T score;
    int64_t index;
  };
  std::vector<Item> left(n);
  for (int64_t i = 0; i < n; ++i) {
    left[i] = {read_box(boxes + 4 * i, T(1)), scores[i], i};
  }
  while (!left.empty()) {
    const auto best = std::max_element(
        left.begin(), left.end(), [](const Item& a, const Item& b) { return a.score < b.score; });
    const Item chosen = *best;
    kept.push_back(chosen.index);
    kept_scores.push_back(chosen.score);
    auto place = left.begin();
    for (const Item& item : left) {
      const Box<T>& box = item.box;
      const T inter = shared(chosen.box, box.x1, box.y1, box.x2, box.y2, T(1));
      const T iou = inter / (chosen.box.area + box.area - inter);
      const T score = inter > 0 ? item.score * std::exp(-iou * iou / sigma) : item.score;
      if (item.index != chosen.index && !(score < score_threshold)) {
        *place = item;
        place->score = score;
        ++place;
      }
    }
    left.erase(place, left.end());
  }
}

#define MB_INSTANTIATE(T)                                                                           \
  template std::vector<int64_t> nms<T>(int64_t, const T*, const T*, const int64_t*, T, bool);       \
  template void soft_nms<T>(int64_t, const T*, const T*, T, T, std::vector<int64_t>&, std::vector<T>&);
MB_INSTANTIATE(float)
MB_INSTANTIATE(double)

}  // namespace mb::cpu
