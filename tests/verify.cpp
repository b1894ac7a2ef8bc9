// Checks layer files against the library: verify FILE..., or verify --list for the layers' names.
// Exit status: 0 all ok, 1 a layer disagrees with its file, 2 a bad file or command.

#include <exception>
#include <iomanip>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "support/golden.hpp"
#include "support/layer_case.hpp"

namespace {

std::string scientific(double value) {
  std::ostringstream text;
  text << std::scientific << std::setprecision(1) << value;
  return text.str();
}

int verify(const std::string& path) {
  const auto errors = support::check_golden(seqmix::Safetensors::open(path));
  std::cout << (errors.ok() ? "ok" : "FAIL") << " " << path << " " << errors.layer
            << " forward=" << scientific(errors.forward)
            << " prefill=" << (errors.continues ? scientific(errors.prefill) : "none")
            << " step=" << (errors.continues ? scientific(errors.step) : "none");
  if (errors.state > 0) std::cout << " state=" << scientific(errors.state);
  std::cout << "\n";
  return errors.ok() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  if (arguments.empty()) {
    std::cerr << "usage: verify FILE..., or verify --list\n";
    return 2;
  }
  if (arguments == std::vector<std::string>{"--list"}) {
    for (const std::string& name : support::registry<double>().names()) std::cout << name << "\n";
    return 0;
  }
  int status = 0;
  for (const std::string& path : arguments) {
    try {
      status = std::max(status, verify(path));
    } catch (const std::exception& error) {
      std::cerr << "verify: " << path << ": " << error.what() << "\n";
      status = 2;
    }
  }
  return status;
}
