// Each kernel against a plain reference in double, over many shapes and in both orders of threads.
#include <random>
#include <string>
#include <vector>

// The sources as they are; each in a namespace, since they share names.
#include "device.cuh"
#include "tensor_core.cuh"
namespace norm {
#include "norm.cu"
}
#undef KERNELS
namespace elementwise {
#include "elementwise.cu"
}
namespace flash {
#include "attention.cu"
}

namespace {

std::mt19937 generator(1);
int cases = 0;
double worst = 0.0;
const char *subject = "";

template <typename T> struct Named;
template <> struct Named<float> {
  static constexpr const char *name = "f32";
  static constexpr double unit = 1.2e-7;
};
template <> struct Named<f16> {
  static constexpr const char *name = "f16";
  static constexpr double unit = 1e-3;
};
template <> struct Named<bf16> {
  static constexpr const char *name = "bf16";
  static constexpr double unit = 8e-3;
};

template <typename T> std::vector<T> normal(size_t count, float deviation = 1.0f, float mean = 0.0f) {
  std::normal_distribution<float> distribution(mean, deviation);
  std::vector<T> values(count);
  for (T &value : values) value = narrow<T>(distribution(generator));
  return values;
}

template <typename T> double at(const std::vector<T> &values, size_t index) { return wide(values[index]); }

double gelu_exact(double x) { return 0.5 * x * (1.0 + erf(x / sqrt(2.0))); }
double sigmoid_times(double x, double slope = 1.0) { return x / (1.0 + exp(-slope * x)); }

// Compares within `bar` units of the type's rounding, of the value or of one, whichever is more.
template <typename T> void compare(const std::vector<T> &ours, const std::vector<double> &exact, double bar, const std::string &shape) {
  double off = 0.0;
  for (size_t i = 0; i < exact.size(); i++) {
    const double scale = fmax(fabs(exact[i]), 1.0) * Named<T>::unit;
    const double here = fabs(at(ours, i) - exact[i]) / scale;
    if (!(here <= bar)) {
      fprintf(stderr, "%s %s %s: [%zu] is %g, should be %g\n", subject, Named<T>::name, shape.c_str(), i, at(ours, i), exact[i]);
      exit(1);
    }
    off = fmax(off, here);
  }
  worst = fmax(worst, off / bar);
  cases++;
}

// Runs with threads in both orders; they must agree in every bit.
template <typename T> std::vector<T> both_orders(size_t count, const std::function<void(T *)> &run, const std::string &shape) {
  std::vector<T> outs[2];
  for (int turn = 0; turn < 2; turn++) {
    emulation::reversed = turn == 1;
    outs[turn] = std::vector<T>(count, narrow<T>(NAN));
    run(outs[turn].data());
  }
  if (memcmp(outs[0].data(), outs[1].data(), count * sizeof(T)) != 0) {
    fprintf(stderr, "%s %s: the result depends on the order of threads\n", subject, shape.c_str());
    exit(1);
  }
  return outs[0];
}

std::string text(std::initializer_list<int> numbers) {
  std::string out;
  for (int number : numbers) out += (out.empty() ? "" : "×") + std::to_string(number);
  return out;
}

#define BY_WIDTH(width, name, ...) ((width) == 8 ? name##_8(__VA_ARGS__) : name##_1(__VA_ARGS__))
#define FOR_TYPES(work) \
  work(float, f32)      \
  work(f16, f16)        \
  work(bf16, bf16)

// Launches as src/cuda/norm.rs does.
#define GROUP_NORM(T, name)                                                                                            \
  void group_norm_##name(int batch, int pixels, int channels, int groups, int size, float mean, bool with_silu) {      \
    const int width = channels % 8 == 0 ? 8 : 1, columns = channels / width;                                           \
    const int lanes = 512 / columns > 0 ? 512 / columns : 1;                                                           \
    const int parts = (pixels + size - 1) / size;                                                                      \
    const auto x = normal<T>(static_cast<size_t>(batch) * pixels * channels, 1.0f, mean);                              \
    const auto weight = normal<float>(channels), bias = normal<float>(channels);                                       \
    const float eps = 1e-5f;                                                                                           \
    std::vector<float> partial(static_cast<size_t>(batch) * parts * groups * 2), scales(static_cast<size_t>(batch) * 2 * channels); \
    const std::string shape = text({batch, pixels, channels, groups, size});                                           \
    const auto ours = both_orders<T>(x.size(), [&](T *y) {                                                             \
      emulation::launch(dim3(parts, batch), dim3(columns * lanes), 8ul * channels * lanes, [&] {                       \
        BY_WIDTH(width, norm::group_norm_partial_##name, x.data(), partial.data(), pixels, channels, groups, size);    \
      });                                                                                                              \
      emulation::launch(dim3(groups, batch), dim3(32), 0, [&] {                                                        \
        norm::group_norm_join(partial.data(), weight.data(), bias.data(), scales.data(), parts, pixels, channels, size, eps); \
      });                                                                                                              \
      emulation::launch(dim3(parts, batch), dim3(columns * lanes), 0, [&] {                                            \
        BY_WIDTH(width, norm::group_norm_apply_##name, x.data(), scales.data(), y, pixels, channels, size, with_silu); \
      });                                                                                                              \
    }, shape);                                                                                                         \
    std::vector<double> exact(x.size());                                                                               \
    const int per = channels / groups;                                                                                 \
    for (int b = 0; b < batch; b++)                                                                                    \
      for (int g = 0; g < groups; g++) {                                                                               \
        const auto index = [&](int p, int c) { return (static_cast<size_t>(b) * pixels + p) * channels + g * per + c; }; \
        double sum = 0.0, square = 0.0;                                                                                \
        for (int p = 0; p < pixels; p++)                                                                               \
          for (int c = 0; c < per; c++) sum += at(x, index(p, c));                                                     \
        const double middle = sum / pixels / per;                                                                      \
        for (int p = 0; p < pixels; p++)                                                                               \
          for (int c = 0; c < per; c++) square += pow(at(x, index(p, c)) - middle, 2);                                 \
        const double factor = 1.0 / sqrt(square / pixels / per + eps);                                                 \
        for (int p = 0; p < pixels; p++)                                                                               \
          for (int c = 0; c < per; c++) {                                                                              \
            const double y = (at(x, index(p, c)) - middle) * factor * weight[g * per + c] + bias[g * per + c];         \
            exact[index(p, c)] = with_silu ? sigmoid_times(y) : y;                                                     \
          }                                                                                                            \
      }                                                                                                                \
    compare(ours, exact, sizeof(T) == 4 ? 60 + 40 * fabs(mean) : 1.0, shape);                                          \
  }
FOR_TYPES(GROUP_NORM)

#define LAYER_NORM(T, name)                                                                                            \
  void layer_norm_##name(int rows, int channels) {                                                                     \
    const int width = channels % 8 == 0 ? 8 : 1;                                                                       \
    const auto x = normal<T>(static_cast<size_t>(rows) * channels, 2.0f, 3.0f);                                        \
    const auto weight = normal<float>(channels), bias = normal<float>(channels);                                       \
    const std::string shape = text({rows, channels});                                                                  \
    const auto ours = both_orders<T>(x.size(), [&](T *y) {                                                             \
      emulation::launch(dim3((rows + 7) / 8), dim3(256), 0, [&] {                                                      \
        BY_WIDTH(width, norm::layer_norm_##name, x.data(), weight.data(), bias.data(), y, rows, channels, 1e-5f);      \
      });                                                                                                              \
    }, shape);                                                                                                         \
    std::vector<double> exact(x.size());                                                                               \
    for (int r = 0; r < rows; r++) {                                                                                   \
      double sum = 0.0, square = 0.0;                                                                                  \
      for (int c = 0; c < channels; c++) sum += at(x, r * channels + c);                                               \
      for (int c = 0; c < channels; c++) square += pow(at(x, r * channels + c) - sum / channels, 2);                   \
      for (int c = 0; c < channels; c++)                                                                               \
        exact[r * channels + c] =                                                                                      \
            (at(x, r * channels + c) - sum / channels) / sqrt(square / channels + 1e-5) * weight[c] + bias[c];         \
    }                                                                                                                  \
    compare(ours, exact, sizeof(T) == 4 ? 40 : 1.0, shape);                                                            \
  }
FOR_TYPES(LAYER_NORM)

#define ELEMENTWISE(T, name)                                                                                           \
  void activate_##name(int count, int function) {                                                                      \
    const int width = count % 8 == 0 ? 8 : 1;                                                                          \
    const auto x = normal<T>(count, 4.0f);                                                                             \
    const auto ours = both_orders<T>(count, [&](T *y) {                                                                \
      emulation::launch(dim3(3), dim3(64), 0, [&] {                                                                    \
        BY_WIDTH(width, elementwise::activate_##name, x.data(), y, static_cast<size_t>(count / width), function);      \
      });                                                                                                              \
    }, text({count, function}));                                                                                       \
    std::vector<double> exact(count);                                                                                  \
    for (int i = 0; i < count; i++) {                                                                                  \
      const double v = at(x, i);                                                                                       \
      exact[i] = function == 0 ? sigmoid_times(v) : function == 1 ? gelu_exact(v) : sigmoid_times(v, 1.702);           \
    }                                                                                                                  \
    compare(ours, exact, sizeof(T) == 4 ? 16 : 1.0, text({count, function}));                                          \
  }                                                                                                                    \
  void geglu_##name(int rows, int half) {                                                                              \
    const int width = half % 8 == 0 ? 8 : 1;                                                                           \
    const auto x = normal<T>(static_cast<size_t>(rows) * 2 * half, 2.0f);                                              \
    const auto ours = both_orders<T>(static_cast<size_t>(rows) * half, [&](T *y) {                                     \
      emulation::launch(dim3(5), dim3(64), 0, [&] {                                                                    \
        BY_WIDTH(width, elementwise::geglu_##name, x.data(), y, static_cast<size_t>(rows), half);                      \
      });                                                                                                              \
    }, text({rows, half}));                                                                                            \
    std::vector<double> exact(static_cast<size_t>(rows) * half);                                                       \
    for (int r = 0; r < rows; r++)                                                                                     \
      for (int c = 0; c < half; c++)                                                                                   \
        exact[r * half + c] = at(x, r * 2 * half + c) * gelu_exact(at(x, r * 2 * half + half + c));                    \
    compare(ours, exact, sizeof(T) == 4 ? 16 : 1.0, text({rows, half}));                                               \
  }                                                                                                                    \
  void add_##name(int batch, int pixels, int channels, int which) {                                                    \
    const int width = channels % 8 == 0 ? 8 : 1;                                                                       \
    const size_t count = static_cast<size_t>(batch) * pixels * channels;                                               \
    const auto x = normal<T>(count), picture = normal<T>(count);                                                       \
    const auto bias = normal<T>(channels), channel = normal<T>(static_cast<size_t>(batch) * channels);                 \
    const std::string shape = text({batch, pixels, channels, which});                                                  \
    const auto ours = both_orders<T>(count, [&](T *y) {                                                                \
      emulation::launch(dim3(7), dim3(64), 0, [&] {                                                                    \
        BY_WIDTH(width, elementwise::add_##name, x.data(), which & 1 ? bias.data() : nullptr,                          \
                 which & 2 ? channel.data() : nullptr, which & 4 ? picture.data() : nullptr, y,                        \
                 static_cast<size_t>(batch) * pixels, pixels, channels);                                               \
      });                                                                                                              \
    }, shape);                                                                                                         \
    std::vector<double> exact(count);                                                                                  \
    for (size_t i = 0; i < count; i++) {                                                                               \
      exact[i] = at(x, i);                                                                                             \
      if (which & 1) exact[i] += at(bias, i % channels);                                                               \
      if (which & 2) exact[i] += at(channel, i / channels / pixels * channels + i % channels);                         \
      if (which & 4) exact[i] += at(picture, i);                                                                       \
    }                                                                                                                  \
    compare(ours, exact, sizeof(T) == 4 ? 4 : 1.0, shape);                                                             \
  }                                                                                                                    \
  void upsample_##name(int batch, int height, int width_of, int channels) {                                            \
    const int width = channels % 8 == 0 ? 8 : 1;                                                                       \
    const size_t count = static_cast<size_t>(batch) * height * width_of * channels * 4;                                \
    const auto x = normal<T>(count / 4);                                                                               \
    const std::string shape = text({batch, height, width_of, channels});                                               \
    const auto ours = both_orders<T>(count, [&](T *y) {                                                                \
      emulation::launch(dim3(4), dim3(64), 0, [&] {                                                                    \
        BY_WIDTH(width, elementwise::upsample_##name, x.data(), y, count / width, height, width_of, channels);         \
      });                                                                                                              \
    }, shape);                                                                                                         \
    std::vector<double> exact(count);                                                                                  \
    for (int b = 0; b < batch; b++)                                                                                    \
      for (int i = 0; i < 2 * height; i++)                                                                             \
        for (int j = 0; j < 2 * width_of; j++)                                                                         \
          for (int c = 0; c < channels; c++)                                                                           \
            exact[((static_cast<size_t>(b) * 2 * height + i) * 2 * width_of + j) * channels + c] =                     \
                at(x, ((static_cast<size_t>(b) * height + i / 2) * width_of + j / 2) * channels + c);                  \
    compare(ours, exact, 0.0, shape);                                                                                  \
  }                                                                                                                    \
  void softmax_##name(int rows, int keys, int queries, int first, bool causal) {                                       \
    const auto x = normal<T>(static_cast<size_t>(rows) * keys, 3.0f);                                                  \
    const std::string shape = text({rows, keys, queries, first, causal});                                              \
    const auto ours = both_orders<T>(x.size(), [&](T *y) {                                                             \
      emulation::launch(dim3(rows), dim3(256), 0,                                                                      \
                        [&] { elementwise::softmax_##name(x.data(), y, keys, causal, first, queries); });              \
    }, shape);                                                                                                         \
    std::vector<double> exact(x.size());                                                                               \
    for (int r = 0; r < rows; r++) {                                                                                   \
      const int seen = causal ? std::min(first + r % queries + 1, keys) : keys;                                        \
      double sum = 0.0;                                                                                                \
      for (int k = 0; k < seen; k++) sum += exp(at(x, r * keys + k));                                                  \
      for (int k = 0; k < seen; k++) exact[r * keys + k] = exp(at(x, r * keys + k)) / sum;                             \
    }                                                                                                                  \
    compare(ours, exact, sizeof(T) == 4 ? 8 : 1.0, shape);                                                             \
  }
FOR_TYPES(ELEMENTWISE)

// Queries, keys and values beside each other, as self-attention has them, or apart, each row with its own, as for a text.
#define ATTENTION(T, name)                                                                                             \
  void attention_##name(int batch, int tokens, int others, int heads, bool causal, bool beside) {                      \
    const int channels = heads * 64, stride = beside ? 3 * channels : channels;                                        \
    const auto queries = normal<T>(static_cast<size_t>(batch) * tokens * stride);                                      \
    std::vector<std::vector<T>> keys, values;                                                                          \
    flash::Rows rows{};                                                                                                \
    for (int b = 0; b < batch; b++) {                                                                                  \
      keys.push_back(normal<T>(static_cast<size_t>(others) * channels, 1.5f));                                         \
      values.push_back(normal<T>(static_cast<size_t>(others) * channels));                                             \
    }                                                                                                                  \
    for (int b = 0; b < batch; b++) {                                                                                  \
      const T *row = queries.data() + static_cast<size_t>(b) * tokens * stride;                                        \
      rows.keys[b] = beside ? row + channels : keys[b].data();                                                         \
      rows.values[b] = beside ? row + 2 * channels : values[b].data();                                                 \
    }                                                                                                                  \
    const flash::Shape of{tokens, others, heads, stride, stride, causal, 0.125f * 1.44269504f};                        \
    const std::string shape = text({batch, tokens, others, heads, causal, beside});                                    \
    const auto ours = both_orders<T>(static_cast<size_t>(batch) * tokens * channels, [&](T *y) {                       \
      emulation::launch(dim3((tokens + 127) / 128, heads, batch), dim3(128), 0,                                        \
                        [&] { flash::attention_##name(queries.data(), rows, y, of); });                                \
    }, shape);                                                                                                         \
    std::vector<double> exact(static_cast<size_t>(batch) * tokens * channels);                                         \
    for (int b = 0; b < batch; b++)                                                                                    \
      for (int h = 0; h < heads; h++)                                                                                  \
        for (int q = 0; q < tokens; q++) {                                                                             \
          const T *query = queries.data() + (static_cast<size_t>(b) * tokens + q) * stride + h * 64;                   \
          const auto of_key = [&](const void *from, int k) {                                                           \
            return static_cast<const T *>(from) + static_cast<size_t>(k) * stride + h * 64;                            \
          };                                                                                                           \
          const int seen = causal ? std::min(q + 1, others) : others;                                                  \
          std::vector<double> weights(seen);                                                                           \
          double most = -1e30, sum = 0.0;                                                                              \
          for (int k = 0; k < seen; k++) {                                                                             \
            for (int d = 0; d < 64; d++) weights[k] += double(wide(query[d])) * wide(of_key(rows.keys[b], k)[d]);      \
            most = fmax(most, weights[k] *= 0.125);                                                                    \
          }                                                                                                            \
          for (double &weight : weights) sum += weight = exp(weight - most);                                           \
          for (int d = 0; d < 64; d++) {                                                                               \
            double total = 0.0;                                                                                        \
            for (int k = 0; k < seen; k++) total += weights[k] * wide(of_key(rows.values[b], k)[d]);                   \
            exact[(static_cast<size_t>(b) * tokens + q) * channels + h * 64 + d] = total / sum;                        \
          }                                                                                                            \
        }                                                                                                              \
    compare(ours, exact, 1.5, shape);                                                                                  \
  }
ATTENTION(f16, f16)
ATTENTION(bf16, bf16)

#define IN_ALL_TYPES(call, ...) call##_f32(__VA_ARGS__), call##_f16(__VA_ARGS__), call##_bf16(__VA_ARGS__)

const char *only = nullptr;

// Ends the subject that went before, if any; says whether the next is wanted.
bool begin(const char *next) {
  if (cases > 0) printf("%-12s %3d cases, worst %.2f of the bar\n", subject, cases, worst);
  subject = next;
  cases = 0;
  worst = 0.0;
  return only == nullptr || strcmp(only, next) == 0;
}

}  // namespace

// The name of a subject as argument runs that one alone.
int main(int argc, char **argv) {
  only = argc > 1 ? argv[1] : nullptr;
  struct { int batch, pixels, channels, groups, size; } pictures[] = {
      {1, 1, 8, 1, 4},     {2, 37, 320, 32, 16}, {1, 64, 32, 4, 64},  {3, 9, 24, 4, 100},  {1, 130, 640, 32, 32},
      {2, 5, 5, 5, 2},     {1, 50, 12, 3, 7},    {1, 20, 960, 32, 9}, {1, 3, 2560, 32, 2}, {2, 33, 128, 32, 33},
      {1, 11, 300, 30, 4},
  };
  if (begin("group norm"))
    for (const auto &p : pictures)
      for (float mean : {0.0f, 3.0f})
        IN_ALL_TYPES(group_norm, p.batch, p.pixels, p.channels, p.groups, p.size, mean, mean > 0.0f);
  if (begin("layer norm"))
    for (int rows : {1, 7, 9})
      for (int channels : {5, 16, 100, 640, 768, 1280}) IN_ALL_TYPES(layer_norm, rows, channels);
  if (begin("activations"))
    for (int count : {1, 8, 63, 64, 5000})
      for (int function : {0, 1, 2}) IN_ALL_TYPES(activate, count, function);
  if (begin("geglu"))
    for (int rows : {1, 3, 70})
      for (int half : {1, 8, 33, 96}) IN_ALL_TYPES(geglu, rows, half);
  if (begin("add"))
    for (int which = 0; which < 8; which++)
      for (int channels : {3, 4, 40}) IN_ALL_TYPES(add, 2, 35, channels, which);
  if (begin("upsample"))
    for (int channels : {3, 8, 40}) IN_ALL_TYPES(upsample, 2, 5, 7, channels);
  if (begin("softmax"))
    for (int keys : {1, 77, 300, 1025})
      for (bool causal : {false, true}) IN_ALL_TYPES(softmax, 6, keys, 3, 40, causal);
  struct { int batch, tokens, others, heads; bool causal, beside; } seen[] = {
      {1, 1, 1, 1, false, false},   {2, 77, 77, 2, true, true},    {1, 128, 128, 1, false, true}, {2, 130, 77, 2, false, false},
      {1, 200, 200, 3, true, true}, {3, 65, 64, 1, false, false}, {1, 129, 65, 1, false, false}, {1, 260, 260, 1, false, true},
      {16, 3, 5, 1, false, false},  {1, 20, 300, 1, false, false},
  };
  if (begin("attention"))
    for (const auto &s : seen) {
      attention_f16(s.batch, s.tokens, s.others, s.heads, s.causal, s.beside);
      attention_bf16(s.batch, s.tokens, s.others, s.heads, s.causal, s.beside);
    }
  begin("");
}
