#include "tools/engine/checkpoint_bundles.h"

#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "index/kv_convert.h"
#include "tests/support/temp_dir.h"
#include "tools/engine/safetensors.h"

namespace terrace {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr size_t kNeurons = 10;
constexpr size_t kWidth = 6;

class CheckpointBundlesTest : public ::testing::Test {
 protected:
  void AddMatrix(const std::string& name, size_t rows, size_t columns) {
    std::vector<float>& values = tensors_[name];
    for (size_t i = 0; i < rows * columns; ++i) {
      values.push_back(static_cast<float>(tensors_.size() * 100 + i));
    }
    shapes_[name] = {rows, columns};
  }
  void AddLayer(const std::string& gate, const std::string& up, const std::string& down) {
    if (!gate.empty()) AddMatrix(gate, kNeurons, kWidth);
    AddMatrix(up, kNeurons, kWidth);
    AddMatrix(down, kWidth, kNeurons);
  }
  void AddLlama(size_t layer) {
    const std::string prefix = absl::StrCat("model.layers.", layer, ".mlp.");
    AddLayer(prefix + "gate_proj.weight", prefix + "up_proj.weight", prefix + "down_proj.weight");
  }
  absl::StatusOr<FfnTensors> Find(const std::string& config = R"({"hidden_act": "relu"})") {
    std::vector<TensorToWrite> tensors;
    for (const auto& [name, values] : tensors_) {
      tensors.push_back({name, KvDtype::kFloat32, shapes_[name], values});
    }
    EXPECT_TRUE(WriteSafetensors(dir_.Join("model.safetensors"), tensors).ok());
    std::ofstream(dir_.Join("config.json")) << config;
    auto checkpoint = Checkpoint::Open(dir_.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    checkpoint_ = std::make_unique<Checkpoint>(*std::move(checkpoint));
    return FfnTensors::Find(*checkpoint_);
  }
  static BundleShape ShapeOf(const FfnTensors& tensors) {
    BundleShape shape;
    shape.layers = tensors.layers;
    shape.experts = tensors.experts;
    shape.neurons = tensors.neurons;
    shape.width = tensors.width;
    shape.gated = tensors.gated;
    shape.dtype = KvDtype::kFloat32;
    return shape;
  }
  // The parts of the neuron, gate, up and down, as the tensors have them.
  std::vector<float> Expected(const FfnNames& names, size_t neuron) const {
    std::vector<float> values;
    for (const std::string& name : {names.gate, names.up}) {
      if (name.empty()) continue;
      const auto row = tensors_.at(name).begin() + static_cast<std::ptrdiff_t>(neuron * kWidth);
      values.insert(values.end(), row, row + kWidth);
    }
    for (size_t i = 0; i < kWidth; ++i) {
      values.push_back(tensors_.at(names.down)[i * kNeurons + neuron]);
    }
    return values;
  }
  // Fills all bundles in runs of `most` places and compares them with Expected.
  void CheckBundles(const FfnTensors& tensors, absl::Span<const uint32_t> order, uint32_t most) {
    const BundleShape shape = ShapeOf(tensors);
    CheckpointBundles bundles(*checkpoint_, tensors, shape, order);
    for (uint32_t unit = 0; unit < shape.units(); ++unit) {
      for (uint32_t place = 0; place < shape.neurons; place += most) {
        const uint32_t count = std::min(most, shape.neurons - place);
        std::vector<std::byte> bytes(count * shape.bundle_bytes());
        ASSERT_TRUE(bundles.Fill({unit, place, count}, absl::MakeSpan(bytes)).ok());
        for (uint32_t i = 0; i < count; ++i) {
          std::vector<float> found(shape.bundle_bytes() / sizeof(float));
          std::memcpy(found.data(), bytes.data() + i * shape.bundle_bytes(), shape.bundle_bytes());
          const size_t neuron = order.empty() ? place + i : order[unit * shape.neurons + place + i];
          EXPECT_EQ(found,
                    Expected(tensors.Names(unit / shape.experts, unit % shape.experts), neuron));
        }
      }
    }
  }

  const TempDir dir_;
  std::map<std::string, std::vector<float>> tensors_;
  std::map<std::string, std::vector<uint64_t>> shapes_;
  std::unique_ptr<Checkpoint> checkpoint_;
};

TEST_F(CheckpointBundlesTest, LlamasNeuronsComeInAnyOrder) {
  AddLlama(0);
  AddLlama(1);
  const auto tensors = Find();
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_EQ(tensors->layers, 2u);
  EXPECT_EQ(tensors->experts, 1u);
  EXPECT_EQ(tensors->activation, Activation::kRelu);
  CheckBundles(*tensors, {}, 4);
  std::vector<uint32_t> order;
  for (uint32_t i = 0; i < 2 * kNeurons; ++i) order.push_back((i * 7 + 3) % kNeurons);
  CheckBundles(*tensors, order, 3);
}

TEST_F(CheckpointBundlesTest, MixtralsExpertsAreUnits) {
  for (size_t layer = 0; layer < 2; ++layer) {
    for (size_t expert = 0; expert < 3; ++expert) {
      const std::string prefix =
          absl::StrCat("model.layers.", layer, ".block_sparse_moe.experts.", expert, ".");
      AddLayer(prefix + "w1.weight", prefix + "w3.weight", prefix + "w2.weight");
    }
    AddMatrix(absl::StrCat("model.layers.", layer, ".block_sparse_moe.gate.weight"), 3, kWidth);
  }
  const auto tensors = Find("{}");
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_EQ(tensors->layers, 2u);
  EXPECT_EQ(tensors->experts, 3u);
  EXPECT_EQ(tensors->activation, Activation::kSilu);
  CheckBundles(*tensors, {}, kNeurons);
}

TEST_F(CheckpointBundlesTest, NetworksWithoutAGateHaveTwoParts) {
  AddLayer("", "model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.down_proj.weight");
  const auto tensors = Find();
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  EXPECT_FALSE(tensors->gated);
  CheckBundles(*tensors, {}, 5);
}

TEST_F(CheckpointBundlesTest, WhatCannotBePackedIsNamed) {
  const auto message = [this](const std::string& config = "{}") {
    return std::string(Find(config).status().message());
  };
  AddMatrix("something.else", 2, 2);
  EXPECT_THAT(message(), HasSubstr("has no feed-forward network"));
  AddLlama(0);
  EXPECT_THAT(message(R"({"hidden_act": "gelu"})"), HasSubstr("hidden_act"));
  AddMatrix("model.layers.0.mlp.up_proj.bias", 1, kNeurons);
  EXPECT_THAT(message(), AllOf(HasSubstr("up_proj.bias"), HasSubstr("biases")));
  tensors_.erase("model.layers.0.mlp.up_proj.bias");
  AddMatrix("model.layers.1.mlp.up_proj.weight", kNeurons, kWidth);
  EXPECT_THAT(message(), HasSubstr("model.layers.1.mlp.down_proj.weight\" is missing"));
  AddMatrix("model.layers.1.mlp.down_proj.weight", kNeurons, kWidth);
  EXPECT_THAT(message(), HasSubstr("expected [6, 10]"));
}

TEST_F(CheckpointBundlesTest, AWeightBeyondTheDtypeIsNamed) {
  AddLlama(0);
  tensors_["model.layers.0.mlp.down_proj.weight"][2 * kNeurons + 3] = 1e6f;
  const auto tensors = Find();
  ASSERT_TRUE(tensors.ok()) << tensors.status();
  BundleShape shape = ShapeOf(*tensors);
  shape.dtype = KvDtype::kFloat16;
  CheckpointBundles bundles(*checkpoint_, *tensors, shape, {});
  std::vector<std::byte> bytes(kNeurons * shape.bundle_bytes());
  const absl::Status status = bundles.Fill({0, 0, kNeurons}, absl::MakeSpan(bytes));
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("down_proj"), HasSubstr("neuron 3"), HasSubstr("fp16")));
}

TEST_F(CheckpointBundlesTest, FingerprintsTellModelsApart) {
  AddLlama(0);
  ASSERT_TRUE(Find().ok());
  const auto first = checkpoint_->Fingerprint();
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(*checkpoint_->Fingerprint(), *first);
  tensors_["model.layers.0.mlp.up_proj.weight"][5] += 1;
  ASSERT_TRUE(Find().ok());
  EXPECT_NE(*checkpoint_->Fingerprint(), *first);
  tensors_["model.layers.0.mlp.up_proj.weight"][5] -= 1;
  AddMatrix("more", 1, 1);
  ASSERT_TRUE(Find().ok());
  EXPECT_NE(*checkpoint_->Fingerprint(), *first);
}

}  // namespace
}  // namespace terrace
