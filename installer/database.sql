# What wixl cannot say, set by ./build-msi with msibuild -q, one statement a line.
# README.md has the reasons. @PRODUCT@ is filled in.

# 64-bit components (256); Start's key is a registry value (4), and it can be left out.
UPDATE `Component` SET `Attributes` = 256 WHERE `Component` = 'Program'
UPDATE `Component` SET `Attributes` = 256 WHERE `Component` = 'Documents'
UPDATE `Component` SET `Attributes` = 260 WHERE `Component` = 'Start'
UPDATE `Component` SET `Condition` = 'STARTSERVICE <> "0"' WHERE `Component` = 'Start'

# Properties that msiexec passes on to its elevated half, and the one that no log shows: an
# upstream's URL can hold a password.
UPDATE `Property` SET `Value` = 'CONFIGFILE;INSTALLDIR;LISTEN;PREVCONFIGFILE;PREVINSTALLDIR;STARTSERVICE;UPSTREAM;WIX_DOWNGRADE_DETECTED;WIX_UPGRADE_DETECTED' WHERE `Property` = 'SecureCustomProperties'
INSERT INTO `Property` (`Property`, `Value`) VALUES ('MsiHiddenProperties', 'UPSTREAM')

# Another build of the same version replaces what is there (512 and 256: both bounds count).
DELETE FROM `Upgrade` WHERE `ActionProperty` = 'WIX_UPGRADE_DETECTED'
INSERT INTO `Upgrade` (`UpgradeCode`, `VersionMin`, `VersionMax`, `Language`, `Attributes`, `Remove`, `ActionProperty`) VALUES ('{6C8E5B0A-9D53-5F0E-8B1B-7A0C5D3E2F41}', '0.0.0', '@PRODUCT@', '', 769, '', 'WIX_UPGRADE_DETECTED')

# The exe has a version resource: repair compares versions, not hashes.
UPDATE `File` SET `Version` = '@PRODUCT@.0' WHERE `File` = 'amqproxysvc.exe'
UPDATE `File` SET `Language` = '1033' WHERE `File` = 'amqproxysvc.exe'
DELETE FROM `MsiFileHash` WHERE `File_` = 'amqproxysvc.exe'

# The older version goes right after InstallInitialize: within the transaction, so that a
# failing upgrade brings it back, and before the new files and the new service come.
UPDATE `InstallExecuteSequence` SET `Sequence` = 1501 WHERE `Action` = 'RemoveExistingProducts'

# Where an earlier installation had its files stays so, unless the command line says other.
INSERT INTO `RegLocator` (`Signature_`, `Root`, `Key`, `Name`, `Type`) VALUES ('PrevInstallDir', 2, 'SOFTWARE\amqproxysvc', 'InstallDir', 18)
INSERT INTO `RegLocator` (`Signature_`, `Root`, `Key`, `Name`, `Type`) VALUES ('PrevConfigFile', 2, 'SOFTWARE\amqproxysvc', 'ConfigFile', 18)
INSERT INTO `AppSearch` (`Property`, `Signature_`) VALUES ('PREVINSTALLDIR', 'PrevInstallDir')
INSERT INTO `AppSearch` (`Property`, `Signature_`) VALUES ('PREVCONFIGFILE', 'PrevConfigFile')
INSERT INTO `InstallExecuteSequence` (`Action`, `Condition`, `Sequence`) VALUES ('AppSearch', '', 50)
INSERT INTO `CustomAction` (`Action`, `Type`, `Source`, `Target`) VALUES ('KeepInstallDir', 51, 'INSTALLDIR', '[PREVINSTALLDIR]')
INSERT INTO `CustomAction` (`Action`, `Type`, `Source`, `Target`) VALUES ('KeepConfigFile', 51, 'CONFIGFILE', '[PREVCONFIGFILE]')
INSERT INTO `CustomAction` (`Action`, `Type`, `Source`, `Target`) VALUES ('DefaultConfigFile', 51, 'CONFIGFILE', '[CommonAppDataFolder]amqproxysvc\amqproxysvc.toml')
INSERT INTO `CustomAction` (`Action`, `Type`, `Source`, `Target`) VALUES ('SetInstallLocation', 51, 'ARPINSTALLLOCATION', '[INSTALLDIR]')
INSERT INTO `InstallExecuteSequence` (`Action`, `Condition`, `Sequence`) VALUES ('KeepInstallDir', 'PREVINSTALLDIR AND NOT INSTALLDIR', 51)
# With a user interface (a double click) directories are resolved before the execution, and
# passed to it: it is too late there.
INSERT INTO `InstallUISequence` (`Action`, `Condition`, `Sequence`) VALUES ('AppSearch', '', 50)
INSERT INTO `InstallUISequence` (`Action`, `Condition`, `Sequence`) VALUES ('KeepInstallDir', 'PREVINSTALLDIR AND NOT INSTALLDIR', 51)
INSERT INTO `InstallExecuteSequence` (`Action`, `Condition`, `Sequence`) VALUES ('KeepConfigFile', 'PREVCONFIGFILE AND NOT CONFIGFILE', 52)
INSERT INTO `InstallExecuteSequence` (`Action`, `Condition`, `Sequence`) VALUES ('DefaultConfigFile', 'NOT CONFIGFILE', 1010)
INSERT INTO `InstallExecuteSequence` (`Action`, `Condition`, `Sequence`) VALUES ('SetInstallLocation', '', 1011)

# PATH, for everybody (*), put at its end, taken out with the program (-).
CREATE TABLE `Environment` (`Environment` CHAR(72) NOT NULL, `Name` CHAR(255) NOT NULL LOCALIZABLE, `Value` CHAR(255) LOCALIZABLE, `Component_` CHAR(72) NOT NULL PRIMARY KEY `Environment`)
INSERT INTO `Environment` (`Environment`, `Name`, `Value`, `Component_`) VALUES ('Path', '=-*PATH', '[~];[INSTALLDIR]', 'Program')
INSERT INTO `InstallExecuteSequence` (`Action`, `Condition`, `Sequence`) VALUES ('RemoveEnvironmentStrings', '', 3305)
INSERT INTO `InstallExecuteSequence` (`Action`, `Condition`, `Sequence`) VALUES ('WriteEnvironmentStrings', '', 5205)

# The program sets its service up itself: 18 (a file of this MSI) + 1024 (deferred) + 2048
# (as SYSTEM) + 8192 (its command line in no log), between InstallServices (5800) and
# StartServices (5900). + 256: when the installation is rolled back, + 512: when it is through.
# The space behind each value, which the program takes away: a backslash at a value's end would
# make the quotation mark behind it part of the value, and what follows too.
INSERT INTO `CustomAction` (`Action`, `Type`, `Source`, `Target`) VALUES ('ConfigureRollback', 3346, 'amqproxysvc.exe', 'msi-configure --rollback --config "[CONFIGFILE] "')
INSERT INTO `CustomAction` (`Action`, `Type`, `Source`, `Target`) VALUES ('Configure', 11282, 'amqproxysvc.exe', 'msi-configure --config "[CONFIGFILE] " --upstream "[UPSTREAM] " --listen "[LISTEN] " [KeepFlag]')
INSERT INTO `CustomAction` (`Action`, `Type`, `Source`, `Target`) VALUES ('ConfigureCommit', 3602, 'amqproxysvc.exe', 'msi-configure --commit --config "[CONFIGFILE] "')
# On an upgrade or repair the configuration that is there has the last word, whatever the
# command line says; on a first installation the two must not contradict each other.
INSERT INTO `CustomAction` (`Action`, `Type`, `Source`, `Target`) VALUES ('KeepConfig', 51, 'KeepFlag', '--keep')
INSERT INTO `InstallExecuteSequence` (`Action`, `Condition`, `Sequence`) VALUES ('KeepConfig', 'WIX_UPGRADE_DETECTED OR Installed', 1012)
INSERT INTO `InstallExecuteSequence` (`Action`, `Condition`, `Sequence`) VALUES ('ConfigureRollback', 'NOT (REMOVE="ALL")', 5810)
INSERT INTO `InstallExecuteSequence` (`Action`, `Condition`, `Sequence`) VALUES ('Configure', 'NOT (REMOVE="ALL")', 5811)
INSERT INTO `InstallExecuteSequence` (`Action`, `Condition`, `Sequence`) VALUES ('ConfigureCommit', 'NOT (REMOVE="ALL")', 5812)

# An upgrade that fails brings the old service back as the tables have it; this, before
# StopServices (1900) and so undone after all the rest, gives it its own settings again.
INSERT INTO `CustomAction` (`Action`, `Type`, `Source`, `Target`) VALUES ('RestoreConfigured', 3346, 'amqproxysvc.exe', 'msi-configure --config "[CONFIGFILE] " --keep')
INSERT INTO `InstallExecuteSequence` (`Action`, `Condition`, `Sequence`) VALUES ('RestoreConfigured', 'REMOVE="ALL"', 1890)
