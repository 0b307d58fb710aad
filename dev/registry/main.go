// Command registry is the image registry of the local cluster: the well-known one, with its file system driver only.
// The stock command also links the drivers of three clouds, which triples its build time and is of no use here.
package main

import (
	"os"

	"github.com/distribution/distribution/v3/registry"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
)

func main() {
	if err := registry.RootCmd.Execute(); err != nil {
		os.Exit(1)
	}
}
