#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace support {

/// The published code that made a golden file.
struct Published {
  std::string package;
  std::vector<std::string> items;  // its classes or functions
};

/// What the metadata `source` of a golden file names:
///
///   package version item {", " item} ", " ("torch" | "jax") " " anything
///
/// A package is a word, or owner/repository; a version starts with a digit or is a commit. An item
/// is a class, behind the file that it stands in or by its whole path, with what it works with;
/// classes are told from the words between them by their case, and the first remark ends the list.
/// Of a path the class counts, not its method. A function alone may stand for the list. Where no
/// code is public, the source is "own numpy form of" a paper. Throws `CheckpointError` on anything
/// else.
Published published_code(std::string_view source);

/// "package item, item; package item" of all golden files in a folder, by layer.
std::map<std::string, std::string> published_by_layer(const std::filesystem::path& folder);

}  // namespace support
