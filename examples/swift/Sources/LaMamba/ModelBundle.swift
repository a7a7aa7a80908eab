// A bundle's folder: docs/bundle.md, sections 1, 2 and 12.

import Foundation

/// A folder whose manifest and files were found sound.
public struct ModelBundle: Sendable {
    public let folder: URL
    public let manifest: Manifest

    /// Open a bundle. `verifyingFiles: false` leaves out sizes and SHA-256 of files, for one checked before.
    public init(at folder: URL, verifyingFiles: Bool = true) throws {
        try finishReplacing(folder)
        self.folder = folder
        let path = try inside(folder, "manifest.json")
        let raw: Data
        do {
            guard try size(of: path) <= Manifest.bytes else {
                throw Refusal("manifest.json has more than 64 MiB; the bundle is refused")
            }
            raw = try Data(contentsOf: path)
        } catch let error as CocoaError {
            throw Refusal("\(path.path) cannot be read: \(error.localizedDescription)")
        }
        manifest = try Manifest(reading: raw)
        for (name, file) in manifest.files.sorted(by: { $0.key < $1.key }) {
            let path = try inside(folder, name)
            if verifyingFiles { try verify(path, name, file) }
        }
    }

    /// The file of a graph, and its function; refused where the bundle is not for Core ML.
    public func graph(guided: Bool) throws -> (file: URL, function: String) {
        guard manifest.target == "coreml" else {
            throw Refusal("the bundle is for \(manifest.target); make one with lamamba-export -t coreml")
        }
        let name = guided ? "guided" : "unguided"
        guard let graph = manifest.graphs?[name], let function = graph.function,
            manifest.files["\(graph.file)/Manifest.json"] != nil
        else {
            throw Refusal("the bundle lacks its \(name) graph; export it again")
        }
        return (folder.appendingPathComponent(graph.file, isDirectory: true), function)
    }
}

/// Put back a bundle whose replacement was interrupted.
private func finishReplacing(_ folder: URL) throws {
    let previous = folder.deletingLastPathComponent().appendingPathComponent(".\(folder.lastPathComponent).previous")
    let files = FileManager.default
    if !files.fileExists(atPath: folder.path), files.fileExists(atPath: previous.path) {
        try files.moveItem(at: previous, to: folder)
    }
}

/// The real place of a bundle's file, refused where links lead outside the folder or there is none.
private func inside(_ folder: URL, _ name: String) throws -> URL {
    guard let root = real(folder), let path = real(folder.appendingPathComponent(name)) else {
        throw Refusal("\(folder.path) has no \(name); it is no bundle, or not all of one")
    }
    guard path.hasPrefix(root == "/" ? root : root + "/") else {
        throw Refusal("\(name) is a link to outside the bundle; the bundle is refused")
    }
    return URL(fileURLWithPath: path)
}

private func real(_ url: URL) -> String? {
    guard let path = realpath(url.path, nil) else { return nil }
    defer { free(path) }
    return String(cString: path)
}

private func size(of path: URL) throws -> Int {
    let facts = try FileManager.default.attributesOfItem(atPath: path.path)
    guard facts[.type] as? FileAttributeType == .typeRegular, let size = facts[.size] as? NSNumber else {
        throw Refusal("\(path.path) is no file; the bundle is refused")
    }
    return size.intValue
}

private func verify(_ path: URL, _ name: String, _ file: Manifest.File) throws {
    let bytes = try size(of: path)
    guard bytes == file.size else {
        throw Refusal("\(name) is damaged: \(bytes) bytes, expected \(file.size); copy or export the bundle again")
    }
    let handle = try FileHandle(forReadingFrom: path)
    defer { try? handle.close() }
    var hash = SHA256()
    while let part = try handle.read(upToCount: 1 << 20), !part.isEmpty {
        hash.update(data: part)
    }
    guard hexadecimal(hash.finalize()) == file.sha256 else {
        throw Refusal("\(name) is damaged: its SHA-256 differs; copy or export the bundle again")
    }
}
