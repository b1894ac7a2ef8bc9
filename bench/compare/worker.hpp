#pragma once

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <span>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

// What the C++ contestants of the comparison share: a process that run.py talks to by lines.
//
//   prepare <folder> op=<op> M=<number> ...   reads <folder>/<input>.bin, runs once, writes
//                                             <folder>/output.bin  ->  ok, or "no <reason>"
//   time <seconds>                            ->  the median of runs, in ms
//   ask <question>                            ->  the contestant's own answer
//
// Files hold floats, row-major.

namespace compare {

/// A case as it was asked for.
class Request {
 public:
  explicit Request(std::istream& line) {
    line >> folder_;
    for (std::string word; line >> word;) {
      const auto equals = word.find('=');
      values_[word.substr(0, equals)] = word.substr(equals + 1);
    }
  }
  /// A size of the case.
  long operator[](const std::string& name) const { return std::stol(text(name)); }
  const std::string& text(const std::string& name) const {
    const auto found = values_.find(name);
    if (found == values_.end()) throw std::runtime_error("the case has no " + name);
    return found->second;
  }
  std::string text(const std::string& name, const std::string& otherwise) const {
    return values_.contains(name) ? values_.at(name) : otherwise;
  }
  /// Reads an input of `count` numbers.
  void read(const std::string& name, float* to, long count) const {
    std::ifstream file(folder_ + "/" + name + ".bin", std::ios::binary);
    const auto bytes = static_cast<std::streamsize>(count) * 4;
    if (!file.read(reinterpret_cast<char*>(to), bytes)) {
      throw std::runtime_error("input " + name + " is too short");
    }
  }
  void write(std::span<const float> output) const {
    std::ofstream file(folder_ + "/output.bin", std::ios::binary);
    file.write(reinterpret_cast<const char*>(output.data()),
               static_cast<std::streamsize>(output.size_bytes()));
  }

 private:
  std::string folder_;
  std::map<std::string, std::string> values_;
};

using Clock = std::chrono::steady_clock;

inline double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

/// One case of one contestant, ready to run.
class Work {
 public:
  virtual ~Work() = default;
  virtual void run() = 0;
  /// What the last run gave.
  virtual std::span<const float> output() = 0;
  /// The median time of a run within a budget of seconds. Short runs are timed several at a time.
  virtual double measure(double budget) {
    const auto seconds_of = [&](int runs) {
      const auto start = Clock::now();
      for (int i = 0; i < runs; ++i) run();
      return seconds_since(start) / runs;
    };
    const auto start = Clock::now();
    const double once = seconds_of(1);
    if (once > budget) return once;
    const int runs = std::clamp(static_cast<int>(1e-3 / once), 1, 1000);
    std::vector<double> times;
    while (times.size() < 3 || (seconds_since(start) < budget && times.size() < 10000)) {
      times.push_back(seconds_of(runs));
    }
    const auto middle = times.begin() + static_cast<long>(times.size() / 2);
    std::nth_element(times.begin(), middle, times.end());
    return *middle;
  }
};

using Prepare = std::function<std::unique_ptr<Work>(const Request&)>;
using Answer = std::function<std::string(std::istream& question)>;

/// Answers requests until the input ends. What `prepare` throws is why a case cannot run.
inline void serve(const Prepare& prepare, const Answer& answer) {
  std::unique_ptr<Work> work;
  const auto reply = [&](std::istream& line) -> std::string {
    std::string verb;
    line >> verb;
    if (verb == "ask") return answer(line);
    if (verb == "time") {
      double budget = 0;
      line >> budget;
      if (work == nullptr) throw std::runtime_error("nothing is prepared");
      return std::to_string(1e3 * work->measure(budget));
    }
    work = nullptr;
    const Request request(line);
    work = prepare(request);
    work->run();
    request.write(work->output());
    return "ok";
  };
  for (std::string line; std::getline(std::cin, line);) {
    std::istringstream words(line);
    try {
      std::cout << reply(words) << std::endl;
    } catch (const std::exception& failure) {
      std::cout << "no " << failure.what() << std::endl;
    }
  }
}

}  // namespace compare
